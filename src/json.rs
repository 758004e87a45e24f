//! How records become JSON: written out by two small macros. L0.
//!
//! serde's derive would do the same for five more crates in every build, among them a parser of Rust. The shapes are part of
//! the wire contract, and tests in `job.rs` pin them.

/// Why JSON could not be decoded, without what it held: it may be secret, and errors are stored, sent and shown. serde quotes what it
/// did not expect.
pub(crate) fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let masked = [
        "invalid type: ",
        "invalid value: ",
        "unknown variant ",
        "unknown field ",
    ]
    .into_iter()
    .find_map(|what| {
        // The last: what was found may have the same words in it. "there are no fields" is all that may be expected of some.
        let text = text.strip_prefix(what)?;
        let expected = text.rfind(", expected ").or_else(|| text.rfind(", "))?;
        // "string" of `string "secret"`.
        let kind = text[..expected]
            .split(['`', '"'])
            .next()
            .unwrap_or_default();
        let what = format!("{what}{kind}");
        let what = what.trim_end_matches([' ', ':']);
        Some(format!("{what}{}", &text[expected..]))
    });
    masked.unwrap_or(text)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_fit_is_not_repeated() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "it is only to be decoded")]
        struct Card {
            pin: u8,
            kind: Kind,
        }
        #[derive(Debug, serde::Deserialize)]
        enum Kind {
            Debit,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Empty {}
        let error = serde_json::from_str::<Empty>(r#"{"secret": 1}"#).expect_err("no fields");
        let says = "unknown field, there are no fields at line 1 column 9";
        assert_eq!(without_values(&error), says);
        let told = |text| {
            let error = serde_json::from_str::<Card>(text).expect_err(text);
            let told = without_values(&error);
            assert!(!told.contains("secret"), "{told}");
            told
        };
        let at = |column| format!(" at line 1 column {column}");
        let cases = [
            (
                r#"{"pin": "secret, expected `x`"}"#,
                "invalid type: string, expected u8",
                30,
            ),
            (
                r#"{"pin": 1234}"#,
                "invalid value: integer, expected u8",
                12,
            ),
            (
                r#"{"pin": 1, "kind": "secret"}"#,
                "unknown variant, expected `Debit`",
                27,
            ),
            (
                r#"{"secret": 1}"#,
                "unknown field, expected `pin` or `kind`",
                9,
            ),
            (r#"{"pin": null}"#, "invalid type: null, expected u8", 12),
            (r#"{"pin": 1}"#, "missing field `kind`", 10),
            ("[1", "EOF while parsing a list", 2),
        ];
        for (text, says, column) in cases {
            assert_eq!(told(text), format!("{says}{}", at(column)), "{text}");
        }
    }
}
