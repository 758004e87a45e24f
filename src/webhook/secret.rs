//! Keys that sign deliveries. L3.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};

use crate::error::{Error, ErrorKind, Result};

/// Marks a key, so that it is known for what it is wherever it turns up.
const PREFIX: &str = "whsec_";
/// As Standard Webhooks wants it.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;
const BYTES_GENERATED: usize = 32;

/// A key that an endpoint's owner and this queue share. Its text is `whsec_` and 24 to 64 bytes in base64.
///
/// It is never printed: only [`reveal`](Secret::reveal) gives its text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A new one, of 32 random bytes.
    ///
    /// # Errors
    /// `Storage` when the system has no random bytes.
    pub fn generate() -> Result<Secret> {
        let mut bytes = vec![0; BYTES_GENERATED];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| Error::new(ErrorKind::Storage, "the system gives no random bytes"))?;
        Ok(Secret(bytes))
    }

    /// Reads one from its text, with or without `whsec_`.
    ///
    /// # Errors
    /// `InvalidConfig`, which does not repeat the text.
    pub fn parse(text: &str) -> Result<Secret> {
        let invalid = |problem: String| {
            let problem = format!(
                "a webhook secret is {problem}: expected whsec_ and 24 to 64 bytes in base64"
            );
            Error::new(ErrorKind::InvalidConfig, problem)
        };
        let bytes = STANDARD
            .decode(text.strip_prefix(PREFIX).unwrap_or(text))
            .map_err(|_| invalid("not base64".to_owned()))?;
        if !BYTES.contains(&bytes.len()) {
            return Err(invalid(format!("{} bytes long", bytes.len())));
        }
        Ok(Secret(bytes))
    }

    /// Its text, to be handed to the endpoint's owner.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.0))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(...)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_as_it_was_given_and_never_printed() {
        let secret = Secret::generate().expect("random bytes");
        let text = secret.reveal();
        assert_eq!(Secret::parse(&text).expect("its own text"), secret);
        assert_eq!(
            Secret::parse(&text[6..]).expect("without the prefix"),
            secret
        );
        assert_ne!(Secret::generate().expect("random bytes"), secret);
        assert_eq!(format!("{secret:?}"), "Secret(...)");
    }

    #[test]
    fn a_bad_secret_is_refused_without_being_repeated() {
        for bad in [
            "",
            "whsec_",
            "whsec_c2hvcnQ=",
            "whsec_not base64 at all",
            &"A".repeat(88),
        ] {
            let error = Secret::parse(bad).expect_err(bad).to_string();
            assert!(
                error.contains("expected whsec_ and 24 to 64 bytes"),
                "{error}"
            );
            assert!(bad.len() < 8 || !error.contains(&bad[6..]), "{error}");
        }
    }
}
