//! The pages: the dashboard, the way to sign in, the description of the API. L3.

use serde_json::json;

use crate::http::answer::{Answer, problem};
use crate::http::guard::Guard;
use crate::http::router::{Call, Reply, Site};

const DASHBOARD: &str = include_str!("dashboard.html");
const SIGN_IN: &str = include_str!("sign_in.html");
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// A page may load nothing but itself, and run only the script and the styles that are in it, known by their SHA-256. A test
/// computes these, and says what they are to be.
macro_rules! policy {
    ($script:literal, $style:literal) => {
        concat!(
            "default-src 'none'; script-src 'sha256-",
            $script,
            "'; style-src 'sha256-",
            $style,
            "'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
    };
}
const DASHBOARD_POLICY: &str = policy!(
    "YFOoVbMZ/WdLKpAOm7cLXLMTV0qKTSvQXhxDMMRctzs=",
    "IZSbmy5Vf5Ffsb0HtUKCp3josfAVetJkRNb7obhlffk="
);
const SIGN_IN_POLICY: &str = policy!(
    "i6yX7vyOhyMbXOeFTfhQLezb1a7TnMaQxd1BwIPZP/8=",
    "8rOUtmtOokUSg5UriANjQP3MuKKMytyqUSC44U62eUw="
);

fn page(status: u16, html: &'static str, policy: &str) -> Answer {
    Answer::new(status, "text/html; charset=utf-8", html)
        .with("Content-Security-Policy", policy)
        .with("X-Frame-Options", "DENY")
}

pub(super) fn dashboard(_: &Site, _: &Call<'_>) -> Result<Reply, Answer> {
    Ok(page(200, DASHBOARD, DASHBOARD_POLICY).into())
}

pub(super) fn sign_in_page() -> Answer {
    page(401, SIGN_IN, SIGN_IN_POLICY)
}

/// Exchanges the token for a cookie.
pub(super) fn sign_in(site: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&["token"])?;
    if !site.guard.needs_token() {
        return Err(problem(409, "this server has no token"));
    }
    let shown = call.text("token")?.unwrap_or_default();
    match site.guard.sign_in(call.request, shown.trim()) {
        Some(cookie) => Ok(Answer::empty().with("Set-Cookie", &cookie).into()),
        None => Err(problem(401, "this is not the token")),
    }
}

pub(super) fn sign_out(_: &Site, call: &Call<'_>) -> Result<Reply, Answer> {
    call.only(&[])?;
    Ok(Answer::empty()
        .with("Set-Cookie", &Guard::sign_out(call.request))
        .into())
}

pub(super) fn openapi(_: &Site, _: &Call<'_>) -> Result<Reply, Answer> {
    let mut document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap_or_default();
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    Ok(Answer::json(&document).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// 60 KB: a page that loads at once from a small board over a slow link.
    const DASHBOARD_BYTES_MAX: usize = 60_000;

    fn hash(html: &str, tag: &str) -> String {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        assert_eq!(
            html.matches(&open).count(),
            1,
            "one {tag}, without attributes"
        );
        let inner = html
            .split_once(&open)
            .and_then(|(_, rest)| rest.split_once(&close));
        let digest = Sha256::digest(inner.expect("it is closed").0.as_bytes());
        base64(&digest)
    }

    /// Source: RFC 4648, section 4.
    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for group in bytes.chunks(3) {
            let bits = group
                .iter()
                .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
                << (8 * (3 - group.len()));
            for place in 0..4 {
                let digit = (bits >> (18 - 6 * place) & 63) as usize;
                text.push(if place <= group.len() {
                    char::from(DIGITS[digit])
                } else {
                    '='
                });
            }
        }
        text
    }

    #[test]
    fn each_page_may_run_its_own_script_and_no_other() {
        for (name, html, policy) in [
            ("dashboard", DASHBOARD, DASHBOARD_POLICY),
            ("sign_in", SIGN_IN, SIGN_IN_POLICY),
        ] {
            let (script, style) = (hash(html, "script"), hash(html, "style"));
            assert!(
                policy.contains(&format!("script-src 'sha256-{script}'"))
                    && policy.contains(&format!("style-src 'sha256-{style}'")),
                "{name}.html has changed; its policy is to be:\n{script}\n{style}"
            );
        }
    }

    #[test]
    fn the_dashboard_is_one_small_page_that_loads_nothing() {
        assert!(
            DASHBOARD.len() <= DASHBOARD_BYTES_MAX,
            "{} bytes",
            DASHBOARD.len()
        );
        for outside in [
            "src=",
            "http://",
            "https://",
            "@import",
            "url(",
            "style=\"",
            " onclick=",
            "innerHTML",
        ] {
            let found = DASHBOARD
                .replace("http://www.w3.org/2000/svg", "")
                .contains(outside);
            assert!(!found, "{outside}");
        }
    }
}
