//! The store behind async routes: its errors as ours, its calls on threads that may block.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use quarrel_store::{Error, Kind, Store, UnixMs};

use crate::app::App;
use crate::error::ApiError;
use crate::prompt::blocking;

/// Milliseconds since 1970.
pub(crate) fn now() -> UnixMs {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as UnixMs)
}

impl From<Error> for ApiError {
    fn from(e: Error) -> ApiError {
        let message = e.to_string();
        match e.kind() {
            Kind::NotFound => ApiError::not_found(message),
            Kind::Conflict => ApiError::bad(message).status(StatusCode::CONFLICT).code("conflict"),
            Kind::TooLarge => ApiError::bad(message).status(StatusCode::PAYLOAD_TOO_LARGE),
            Kind::Full => ApiError::bad(message).status(StatusCode::INSUFFICIENT_STORAGE),
            Kind::Quota => ApiError::busy(message, "quota_exceeded", retry(&e)),
            Kind::Invalid => ApiError::bad(message),
            Kind::Busy => ApiError::unavailable(message),
            Kind::Internal => ApiError::server(message),
        }
    }
}

fn retry(e: &Error) -> Duration {
    match e {
        Error::Quota { resets_at, .. } => Duration::from_millis((resets_at - now()).max(1000) as u64),
        _ => Duration::from_secs(60),
    }
}

impl App {
    /// The store, if the server has one.
    pub(crate) fn store(&self) -> Result<Arc<Store>, ApiError> {
        let none = || ApiError::not_found("nothing is stored here: the server runs with --no-store");
        self.store.clone().ok_or_else(none)
    }

    /// Works with the store.
    pub(crate) async fn stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> quarrel_store::Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let store = self.store()?;
        blocking(move || Ok(work(&store)?)).await
    }
}
