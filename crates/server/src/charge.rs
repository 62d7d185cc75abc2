//! The tokens that a key's quota pays for: reserved when a request begins, settled by what it took when it is over.

use std::fmt;
use std::sync::Arc;

use quarrel_store::{Reservation, Store};

use crate::error::ApiError;
use crate::store::now;

/// A key of the store whose tokens are counted.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) store: Arc<Store>,
    pub(crate) key: Arc<str>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Account({})", self.key)
    }
}

impl Account {
    /// Takes so many tokens from the quota for a request; an error if it has not as many left. Blocks.
    pub(crate) fn reserve(&self, tokens: u64) -> Result<Charge, ApiError> {
        let reservation = self.store.reserve(&self.key, tokens, now())?;
        Ok(Charge { store: self.store.clone(), reservation: Some(reservation), used: 0 })
    }
}

/// Tokens of a request that runs. Dropping it gives back what was not used.
pub(crate) struct Charge {
    store: Arc<Store>,
    reservation: Option<Reservation>,
    /// Tokens of prompt and answers up to now.
    pub(crate) used: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Some(reservation) = self.reservation.take() else { return };
        let (store, used) = (self.store.clone(), self.used);
        let settle = move || {
            if let Err(e) = store.settle(reservation, used) {
                tracing::error!(error = %e, "the tokens of a request were not counted");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(settle)),
            Err(_) => settle(),
        }
    }
}
