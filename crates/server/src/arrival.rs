//! Bodies must come in time, whole: a client that sends a byte now and then gets an answer and loses its connection.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tokio::time::Sleep;

use crate::error::ApiError;

/// Says whether a body came too late.
pub(crate) struct Late {
    flag: Arc<AtomicBool>,
    limit: Duration,
}

impl Late {
    pub(crate) fn is_late(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    /// What its sender is told.
    pub(crate) fn answer(&self) -> Response {
        let seconds = self.limit.as_secs_f64();
        let message = format!("the body did not come whole within {seconds} s (--body-timeout)");
        let mut response = ApiError::bad(message).status(StatusCode::REQUEST_TIMEOUT).into_response();
        // What is left of it would be taken for the next request.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// Limits the time that a request's body may take from now on.
pub(crate) fn limit(request: &mut Request, limit: Duration) -> Late {
    let late = Late { flag: Arc::default(), limit };
    let body = std::mem::take(request.body_mut());
    *request.body_mut() = match body.is_end_stream() {
        true => body,
        false => {
            let timer = Box::pin(tokio::time::sleep(limit));
            Body::new(Arriving { body, timer, late: late.flag.clone() })
        }
    };
    late
}

struct Arriving {
    body: Body,
    timer: Pin<Box<Sleep>>,
    late: Arc<AtomicBool>,
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending if self.timer.as_mut().poll(context).is_ready() => {
                self.late.store(true, Ordering::Release);
                Poll::Ready(Some(Err(axum::Error::new("the body is late"))))
            }
            frame => frame,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
