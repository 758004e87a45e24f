//! What the fuzzer does with this folder. L3; for `cfg(fuzzing)` and tests only. See `src/fuzzing.rs`.

mod events;
mod site;

#[cfg(test)]
pub(super) use events::decode;
pub(crate) use events::{sse, stream};
pub(crate) use site::{query, request};

/// Takes values off the fuzzer's bytes; at their end all are 0.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *byte
    }

    /// Any text: what is no UTF-8 becomes the replacement character.
    fn text(&mut self) -> String {
        let len = usize::from(self.byte()).min(self.0.len());
        let (text, rest) = self.0.split_at(len);
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }
}
