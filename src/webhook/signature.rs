//! Signatures as Standard Webhooks has them: HMAC-SHA256 over `id.timestamp.body`. L3, pure.
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

use crate::time::Timestamp;
use crate::webhook::secret::Secret;

const VERSION: &str = "v1,";
/// How far a sender's clock may be off.
const TOLERANCE: Duration = Duration::from_secs(300);

/// The value of the header `webhook-signature`: one signature for each key.
pub(super) fn sign(secrets: &[Secret], id: &str, timestamp: i64, body: &[u8]) -> String {
    let sign = |secret: &Secret| {
        let tag = hmac::sign(&key(secret), &message(id, &timestamp.to_string(), body));
        format!("{VERSION}{}", STANDARD.encode(tag))
    };
    secrets.iter().map(sign).collect::<Vec<_>>().join(" ")
}

fn key(secret: &Secret) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret.bytes())
}

fn message(id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat()
}

/// A webhook as a receiver gets it: for receivers that are written in Rust.
///
/// ```
/// use stepwell::webhook::{Secret, Signed};
/// use stepwell::Timestamp;
///
/// let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?;
/// let webhook = Signed {
///     id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
///     timestamp: "1614265330",
///     signature: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
///     body: br#"{"test": 2432232314}"#,
/// };
/// assert!(webhook.verify(&[secret], Timestamp::from_millis(1_614_265_330_000)).is_ok());
/// # Ok::<(), stepwell::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// The header `webhook-id`. It is the same for each repetition: remember it, and do nothing for one that you know.
    pub id: &'a str,
    /// The header `webhook-timestamp`.
    pub timestamp: &'a str,
    /// The header `webhook-signature`.
    pub signature: &'a str,
    /// The body, byte for byte as it came.
    pub body: &'a [u8],
}

/// Why a webhook cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unverified {
    /// Its timestamp is no number of seconds.
    BadTimestamp,
    /// It was signed more than five minutes ago, or will be: somebody repeats it, or a clock is wrong.
    WrongTime,
    /// No signature of it was made with any of the keys.
    WrongSignature,
}

impl fmt::Display for Unverified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unverified::BadTimestamp => "webhook-timestamp is no number of seconds",
            Unverified::WrongTime => "webhook-timestamp is more than five minutes off",
            Unverified::WrongSignature => "webhook-signature was made with none of the keys",
        })
    }
}

impl std::error::Error for Unverified {}

impl Signed<'_> {
    /// Whether one of `secrets` has signed it, within five minutes of `now`. Compares in constant time.
    ///
    /// # Errors
    /// Why not. Answer the sender with 401, and do nothing else.
    pub fn verify(&self, secrets: &[Secret], now: Timestamp) -> Result<(), Unverified> {
        let signed: i64 = self
            .timestamp
            .parse()
            .map_err(|_| Unverified::BadTimestamp)?;
        let signed = Timestamp::from_millis(signed.saturating_mul(1000));
        if now.since(signed).max(signed.since(now)) > TOLERANCE {
            return Err(Unverified::WrongTime);
        }
        let message = message(self.id, self.timestamp, self.body);
        let tags = self
            .signature
            .split(' ')
            .filter_map(|tag| tag.strip_prefix(VERSION));
        let tags: Vec<_> = tags.filter_map(|tag| STANDARD.decode(tag).ok()).collect();
        let is_right = |secret: &Secret| {
            let key = key(secret);
            tags.iter()
                .any(|tag| hmac::verify(&key, &message, tag).is_ok())
        };
        if secrets.iter().any(is_right) {
            Ok(())
        } else {
            Err(Unverified::WrongSignature)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Standard Webhooks and of its oldest implementation.
    const VECTORS: [(&str, &str, i64, &str, &str); 2] = [
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            r#"{"email":"test@example.com","username":"test_user"}"#,
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
    ];

    fn secret(text: &str) -> Secret {
        Secret::parse(text).expect("a vector")
    }

    #[test]
    fn the_official_vectors_hold() {
        for (key, id, timestamp, body, signature) in VECTORS {
            assert_eq!(
                sign(&[secret(key)], id, timestamp, body.as_bytes()),
                signature
            );
        }
    }

    #[test]
    fn any_of_several_keys_is_enough_and_one_changed_bit_is_not() {
        let (old, new) = (secret(VECTORS[0].0), secret(VECTORS[1].0));
        let body = b"some body".to_vec();
        let signature = sign(&[new.clone(), old.clone()], "msg_1", 1000, &body);
        let verify = |id: &str, timestamp: &str, signature: &str, body: &[u8], secret: &Secret| {
            let signed = Signed {
                id,
                timestamp,
                signature,
                body,
            };
            signed.verify(
                std::slice::from_ref(secret),
                Timestamp::from_millis(1_000_000),
            )
        };
        for secret in [&old, &new] {
            assert_eq!(verify("msg_1", "1000", &signature, &body, secret), Ok(()));
        }
        let wrong = Err(Unverified::WrongSignature);
        let single = sign(std::slice::from_ref(&old), "msg_1", 1000, &body);
        assert_eq!(verify("msg_1", "1000", &single, &body, &new), wrong);
        for bit in 0..body.len() * 8 {
            let mut other = body.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify("msg_1", "1000", &signature, &other, &old), wrong);
        }
        assert_eq!(verify("msg_2", "1000", &signature, &body, &old), wrong);
        assert_eq!(verify("msg_1", "1001", &signature, &body, &old), wrong);
        for bad in ["", "v1,", "v2,abc", "v1,!!!", &signature[3..47]] {
            assert_eq!(verify("msg_1", "1000", bad, &body, &old), wrong, "{bad}");
        }
    }

    #[test]
    fn what_is_too_old_or_from_the_future_is_refused() {
        let secret = secret(VECTORS[0].0);
        let signature = sign(std::slice::from_ref(&secret), "msg_1", 1000, b"x");
        let at = |now: i64, timestamp: &str| {
            let signed = Signed {
                id: "msg_1",
                timestamp,
                signature: &signature,
                body: b"x",
            };
            signed.verify(
                std::slice::from_ref(&secret),
                Timestamp::from_millis(now * 1000),
            )
        };
        assert_eq!((at(1300, "1000"), at(700, "1000")), (Ok(()), Ok(())));
        assert_eq!(at(1301, "1000"), Err(Unverified::WrongTime));
        assert_eq!(at(699, "1000"), Err(Unverified::WrongTime));
        assert_eq!(at(1000, "soon"), Err(Unverified::BadTimestamp));
        assert_eq!(at(1000, "9223372036854775807"), Err(Unverified::WrongTime));
    }
}
