//! Numbers that commands print and job lines hold: whether JSON gives them back.
//!
//! A number in JSON becomes an integer of 64 bits or a double, and is printed as these are: `3.10` as `3.1`, `1e3` as `1000.0`, and of
//! `12345678901234567890123` only 17 digits are left.

use serde_json::Value;

/// Whether the number `text` is printed as the same characters.
pub fn is_kept(text: &str) -> bool {
    printed(text).is_some_and(|printed| printed == text)
}

/// Whether any of the numbers in `json`, which is valid, would be another number, if only by its last digits.
pub fn is_any_changed(json: &str) -> bool {
    first_changed(json).is_some()
}

/// The first of the numbers in `json`, which is valid, that would be another one.
pub fn first_changed(json: &str) -> Option<&str> {
    let is_changed = |text: &&str| {
        printed(text).is_none_or(|printed| Decimal::of(text) != Decimal::of(&printed))
    };
    numbers(json).find(is_changed)
}

/// What becomes of a number.
pub fn printed(text: &str) -> Option<String> {
    Some(serde_json::from_str::<Value>(text).ok()?.to_string())
}

/// What stands outside of strings and can only be a number.
fn numbers(json: &str) -> impl Iterator<Item = &str> {
    let mut is_string = false;
    let mut is_escaped = false;
    let is_outside = move |c: char| {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = is_string,
            '"' => is_string = !is_string,
            _ => {}
        }
        is_string || !(c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E'))
    };
    // The letter e is in `true` and `false` as well.
    json.split(is_outside)
        .filter(|text| text.contains(|c: char| c.is_ascii_digit()))
}

/// The value of a number, however it is written: its digits without zeros at either end, times a power of ten.
#[derive(PartialEq, Eq)]
struct Decimal {
    is_negative: bool,
    digits: String,
    /// Of ten, by which the digits are multiplied if the point stands before them. None if it is out of all bounds.
    exponent: Option<i64>,
}

impl Decimal {
    fn of(text: &str) -> Decimal {
        let (is_negative, text) = text
            .strip_prefix('-')
            .map_or((false, text), |text| (true, text));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_start_matches('0');
        let point = whole.len() as i64 - (all.len() - digits.len()) as i64;
        let digits = digits.trim_end_matches('0').to_owned();
        // All zeros are the same.
        let exponent = if digits.is_empty() {
            Some(0)
        } else {
            exponent
                .parse()
                .ok()
                .and_then(|exponent: i64| exponent.checked_add(point))
        };
        Decimal {
            is_negative,
            digits,
            exponent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_kept_if_it_is_printed_as_it_was() {
        for text in [
            "0",
            "42",
            "-7",
            "0.5",
            "1.0",
            "18446744073709551615",
            "-9223372036854775808",
        ] {
            assert!(is_kept(text), "{text}");
        }
        for text in [
            "3.10",
            "1e3",
            "1E300",
            "-0",
            "1234e56",
            "0.1e1",
            "18446744073709551616",
            "1e-400",
            "007",
            "",
        ] {
            assert!(!is_kept(text), "{text}");
        }
    }

    #[test]
    fn a_number_that_loses_digits_is_found_anywhere_in_json() {
        for json in [
            "[1, -2.5, 3.10, 1e3, 1E-07, 0.1, 1e+16, 0.0, -0.0, 0e5, 100]",
            r#"{"a": true, "12345678901234567890123": "12345678901234567890123"}"#,
            r#"["a\"12345678901234567890123", "\\", "\\\"", 0.30000000000000004]"#,
            "null",
        ] {
            assert!(!is_any_changed(json), "{json}");
        }
        for json in [
            "12345678901234567890123",
            r#"{"id":12345678901234567890123}"#,
            r#"["\\",12345678901234567890123]"#,
            "[0.12345678901234567890123]",
            "[false,18446744073709551616]",
            "[1e-400]",
            "[1e-99999999999999999999]",
        ] {
            assert!(is_any_changed(json), "{json}");
        }
    }
}
