//! Who may ask: the bearer of the token, and no page in a browser.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::{ApiError, App};

/// Paths that need no token.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

pub(super) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    app.control.metrics.http_requests.inc();
    let open = OPEN.contains(&request.uri().path());
    let refused = check(request.headers(), request.uri().host(), open, &app.token);
    if let Some(error) = refused {
        app.control.metrics.http_refused.inc();
        return error.into_response();
    }
    let Ok(_turn) = app.requests.try_acquire() else {
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "limit", "too many requests at once")
            .into_response();
    };
    next.run(request).await
}

/// Why a request is refused.
fn check(headers: &HeaderMap, target: Option<&str>, open: bool, token: &str) -> Option<ApiError> {
    let denied = |why: &str| Some(ApiError::new(StatusCode::FORBIDDEN, "denied", why));
    let text = |name| headers.get(name).map(|value: &axum::http::HeaderValue| value.to_str().unwrap_or(""));
    // A name that resolves to this machine but is not its own (DNS rebinding) is refused here.
    let host = text(header::HOST).or(target).unwrap_or("");
    if !is_local(host) {
        return denied("the Host of this request is not this machine: use 127.0.0.1 or localhost");
    }
    if text(header::ORIGIN).is_some_and(|origin| origin.strip_prefix("http://") != Some(host)) {
        return denied("requests from pages of another origin are refused");
    }
    if open {
        return None;
    }
    let given = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")).unwrap_or("");
    // Hashes are compared, so that the time that it takes tells nothing about the token.
    if blake3::hash(given.trim().as_bytes()) != blake3::hash(token.as_bytes()) {
        let why = "send `Authorization: Bearer` and the token in run/token of the data directory";
        return Some(ApiError::new(StatusCode::UNAUTHORIZED, "denied", why));
    }
    None
}

/// Whether `host` (with or without a port) is an address or `localhost`: neither can be bound to another machine behind the caller's back.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name == "localhost" || bare.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| ((*name).parse().expect("a name"), value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn only_the_bearer_of_the_token_from_this_machine() {
        let ask = |pairs: &[(&'static str, &str)], open| {
            check(&headers(pairs), None, open, "secret").map(|error| error.status.as_u16())
        };
        let good = [("host", "127.0.0.1:7441"), ("authorization", "Bearer secret")];
        assert_eq!(ask(&good, false), None);
        assert_eq!(ask(&[("host", "localhost:7441"), good[1]], false), None);
        assert_eq!(ask(&[("host", "[::1]:7441"), good[1]], false), None);
        assert_eq!(ask(&[("host", "localhost:7441")], true), None, "health needs no token");
        assert_eq!(ask(&good[..1], false), Some(401));
        assert_eq!(ask(&[good[0], ("authorization", "Bearer secre")], false), Some(401));
        assert_eq!(ask(&[good[0], ("authorization", "secret")], false), Some(401));
        assert_eq!(ask(&[("host", "evil.example:7441"), good[1]], false), Some(403));
        assert_eq!(ask(&[("host", "evil.example:7441")], true), Some(403));
        assert_eq!(ask(&[("host", "localhost.evil.example"), good[1]], false), Some(403));
        assert_eq!(ask(&good[1..], false), Some(403), "no Host");
        assert_eq!(ask(&[good[0], good[1], ("origin", "http://evil.example")], false), Some(403));
        assert_eq!(ask(&[good[0], good[1], ("origin", "null")], false), Some(403));
        assert_eq!(ask(&[good[0], good[1], ("origin", "http://127.0.0.1:80")], false), Some(403));
        assert_eq!(ask(&[good[0], good[1], ("origin", "http://6.6.6.6:7441")], false), Some(403));
        assert_eq!(ask(&[("host", "localhost:8000"), good[1]], false), None, "a forwarded port");
        assert_eq!(ask(&[("host", ""), good[1]], false), Some(403));
        assert_eq!(ask(&[good[0], good[1], ("origin", "http://127.0.0.1:7441")], false), None);
    }
}
