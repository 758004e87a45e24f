//! How records become JSON: written out by two small macros. L0.
//!
//! serde's derive would do the same for five more crates in every build, among them a parser of Rust. The shapes are part of
//! the wire contract, and tests in `job.rs` pin them.

/// Serialises a record as an object of the named fields, in this order; `?field` is left out when it is `None`, and
/// `name = field` gives it another name.
macro_rules! object {
    ($type:ty { $($fields:tt)* }) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                let mut map = serde::Serializer::serialize_map(serializer, None)?;
                $crate::json::fields!(self, map, $($fields)*);
                serde::ser::SerializeMap::end(map)
            }
        }
    };
}

macro_rules! fields {
    ($self:ident, $map:ident, ) => {};
    ($self:ident, $map:ident, ? $field:ident, $($rest:tt)*) => {
        if let Some(value) = &$self.$field {
            serde::ser::SerializeMap::serialize_entry(&mut $map, stringify!($field), value)?;
        }
        $crate::json::fields!($self, $map, $($rest)*);
    };
    ($self:ident, $map:ident, $name:literal = $field:ident, $($rest:tt)*) => {
        serde::ser::SerializeMap::serialize_entry(&mut $map, $name, &$self.$field)?;
        $crate::json::fields!($self, $map, $($rest)*);
    };
    ($self:ident, $map:ident, $field:ident, $($rest:tt)*) => {
        serde::ser::SerializeMap::serialize_entry(&mut $map, stringify!($field), &$self.$field)?;
        $crate::json::fields!($self, $map, $($rest)*);
    };
}

/// Serialises a value as the name that its `as_str` gives.
macro_rules! name {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(
                &self,
                serializer: S,
            ) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

/// Reads and writes a number that has a type of its own.
macro_rules! number {
    ($type:ident) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(
                &self,
                serializer: S,
            ) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_i64(self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(
                deserializer: D,
            ) -> std::result::Result<$type, D::Error> {
                i64::deserialize(deserializer).map($type)
            }
        }
    };
}

pub(crate) use {fields, name, number, object};
