//! Where requests go in which the cache has no part: the same servers that fills ask.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;

use crate::config;
use crate::edge::pass::{PassPeer, PassTarget, PassTimeouts};
use crate::origin::{HostRule, HttpOrigin};

/// The servers of one group's origin.
pub struct OriginPass {
    origin: HttpOrigin,
    timeouts: PassTimeouts,
}

impl OriginPass {
    /// The pass-through side of `origin`, with the timeouts of its group.
    pub fn shared(origin: HttpOrigin, group: &config::Group) -> Arc<dyn PassTarget> {
        let timeouts = PassTimeouts {
            connect: group.timeouts.connect,
            // Until the head; the wait between two pieces of a body is shorter, but pingora knows only one of the two.
            read: group.timeouts.first_byte.max(group.timeouts.between_bytes),
            write: group.timeouts.between_bytes,
            ..PassTimeouts::default()
        };
        Arc::new(OriginPass { origin, timeouts })
    }
}

#[async_trait]
impl PassTarget for OriginPass {
    async fn choose(&self, attempt: usize) -> Result<PassPeer, &'static str> {
        let chosen = self.origin.choose_for_pass(attempt).await.map_err(|error| {
            tracing::debug!(%error, "no server for a request that passes");
            "the origin cannot be reached"
        })?;
        let host = match &self.origin.settings().host {
            HostRule::Origin => Some(Cow::Owned(chosen.url.authority().to_owned())),
            HostRule::Client => None,
            HostRule::Name(name) => Some(Cow::Owned(name.clone())),
        };
        let base_path = chosen.url.prefix().to_owned();
        Ok(PassPeer { peer: chosen.peer, base_path: Cow::Owned(base_path), host, timeouts: self.timeouts })
    }

    fn retries(&self) -> usize {
        self.origin.settings().retries
    }
}
