//! From a request to its answer.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::oneshot;

use super::{page, readiness};
use crate::metrics::Format;
use crate::shared::{self, Shared};

type Answer = Response<Full<Bytes>>;

const PLAIN: &str = "text/plain; charset=utf-8";

/// Bodies of requests are not read.
pub(super) async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Answer, Infallible> {
    let path = request.uri().path();
    let part = page::part(path);
    let known = part.is_some() || matches!(path, "/metrics" | "/healthz" | "/readyz");
    Ok(match path {
        _ if !known => plain(StatusCode::NOT_FOUND, "not found\n"),
        _ if request.method() != Method::GET && request.method() != Method::HEAD => not_allowed(),
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" => ready(&shared),
        "/metrics" => metrics(request.headers(), &shared).await,
        _ => part.map_or_else(|| plain(StatusCode::NOT_FOUND, "not found\n"), show),
    })
}

fn ready(shared: &Shared) -> Answer {
    match readiness(&shared.broker.lock()) {
        Ok(()) => plain(StatusCode::OK, "ok\n"),
        Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
    }
}

async fn metrics(headers: &HeaderMap, shared: &Shared) -> Answer {
    let wanted: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::accepted(&wanted.join(","));
    let (reply, exposition) = oneshot::channel();
    shared.ask(shared::Request::Scrape { format, reply });
    match exposition.await {
        Ok(text) => with_type(StatusCode::OK, format.content_type(), text),
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
    }
}

/// A part of the page.
fn show((kind, text): (&'static str, &'static str)) -> Answer {
    let mut answer = with_type(StatusCode::OK, kind, text.to_owned());
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

fn not_allowed() -> Answer {
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    answer
}

fn plain(status: StatusCode, text: &str) -> Answer {
    with_type(status, PLAIN, text.to_owned())
}

fn with_type(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
