//! What the fuzzer calls (`fuzz/`), and what replays its corpus in the ordinary tests. L4; it is there for `cfg(fuzzing)` and for tests only,
//! so nothing of it is public.
//!
//! Each function takes any bytes, and panics when they show a bug. The targets that need only what is public are in `fuzz/` and
//! `tests/hostile`.

/// The head of a request, and what the site answers.
#[cfg(feature = "http")]
pub fn request(bytes: &[u8]) {
    crate::http::fuzz::request(bytes);
}

/// Filters and cursors, in the query of a request.
#[cfg(feature = "http")]
pub fn query(bytes: &[u8]) {
    crate::http::fuzz::query(bytes);
}

/// Events to bytes, and back by a reader as the standard says.
#[cfg(feature = "http")]
pub fn sse(bytes: &[u8]) {
    crate::http::fuzz::sse(bytes);
}

/// A stream that falls behind and comes back, in any order of what can happen to it.
#[cfg(feature = "http")]
pub fn stream(bytes: &[u8]) {
    crate::http::fuzz::stream(bytes);
}

/// The answer of a webhook's receiver.
#[cfg(feature = "webhook")]
pub fn answer(bytes: &[u8]) {
    crate::webhook::fuzz::answer(bytes);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Every input of the corpus, and every beginning of it that is shorter by a half and by one byte.
    fn replay(target: &str, run: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(target);
        let entries = std::fs::read_dir(&dir).expect("the corpus is there");
        let mut count = 0;
        for entry in entries {
            let path = entry.expect("it can be listed").path();
            let bytes = std::fs::read(&path).expect("it can be read");
            // The name of the input is the first thing to know when it fails.
            log::info!("{}", path.display());
            for end in [bytes.len(), bytes.len().saturating_sub(1), bytes.len() / 2] {
                run(&bytes[..end]);
            }
            count += 1;
        }
        assert!(count >= 10, "{target}: only {count} inputs");
    }

    #[cfg(feature = "http")]
    #[test]
    fn requests_of_the_corpus_are_answered() {
        replay("request", super::request);
    }

    #[cfg(feature = "http")]
    #[test]
    fn queries_of_the_corpus_are_answered() {
        replay("query", super::query);
    }

    #[cfg(feature = "http")]
    #[test]
    fn events_of_the_corpus_are_decoded_as_they_were_encoded() {
        replay("sse", super::sse);
    }

    #[cfg(feature = "http")]
    #[test]
    fn streams_of_the_corpus_miss_nothing() {
        replay("stream", super::stream);
    }

    #[cfg(feature = "webhook")]
    #[test]
    fn answers_of_the_corpus_are_understood_or_refused() {
        replay("answer", super::answer);
    }
}
