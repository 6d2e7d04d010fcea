//! Which group answers which request of a client, and what the edge has to know of it.

use std::sync::Arc;

use super::pass::PassTarget;
use super::response::FieldRules;
use crate::group::Group;
use crate::semantics::router::{MatchRule, NoRoute, Router, RouterError};
use crate::semantics::target::Authority;

/// One group as clients meet it.
pub struct Site {
    /// The group.
    pub group: Arc<Group>,
    /// What is set on and removed from answers (`headers.to_client`).
    pub to_client: FieldRules,
    /// What is set on and removed from requests that pass through (`headers.to_origin`).
    pub to_origin: FieldRules,
    /// Which methods pass through.
    pub pass: PassRule,
    /// Where requests that pass go; `None` for a directory.
    pub target: Option<Arc<dyn PassTarget>>,
}

/// Which methods besides `GET` and `HEAD` go to the origin (`pass`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassRule {
    /// All that are not refused for everybody.
    All,
    /// None.
    None,
    /// These.
    Only(Vec<String>),
}

impl PassRule {
    /// Whether requests with this method pass.
    pub fn allows(&self, method: &str) -> bool {
        match self {
            PassRule::All => true,
            PassRule::None => false,
            PassRule::Only(methods) => methods.iter().any(|allowed| allowed == method),
        }
    }
}

impl Site {
    /// Whether requests with this method pass to the origin.
    pub fn passes(&self, method: &str) -> bool {
        self.target.is_some() && (matches!(method, "GET" | "HEAD") || self.pass.allows(method))
    }

    /// The value of `Allow` in a 405.
    pub fn allow(&self) -> String {
        let methods: &[&str] = &["GET", "HEAD"];
        let mut allow = methods.join(", ");
        let others: Vec<&str> = match (&self.pass, &self.target) {
            (PassRule::All, Some(_)) => OTHER_METHODS.to_vec(),
            (PassRule::Only(methods), Some(_)) => methods.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        };
        for method in others.into_iter().filter(|method| !methods.contains(method)) {
            allow.push_str(", ");
            allow.push_str(method);
        }
        allow
    }
}

/// All groups of a configuration. Replaced as a whole by a reload.
#[derive(Default)]
pub struct Sites {
    router: Router,
    sites: Vec<Arc<Site>>,
    /// Where Go peers ask, when that is not below [`PREFIX`](super::endpoints::PREFIX).
    go_base_path: Option<Box<[u8]>>,
}

impl Sites {
    /// The groups with what they match.
    ///
    /// # Errors
    /// Two groups match the same, or a path cannot be matched.
    pub fn new(sites: impl IntoIterator<Item = (MatchRule, Arc<Site>)>) -> Result<Self, RouterError> {
        let (rules, sites): (Vec<_>, Vec<_>) = sites.into_iter().unzip();
        Ok(Sites { router: Router::new(&rules)?, sites, go_base_path: None })
    }

    /// The same with the path below which Go peers ask (`fleet.go.base_path`), on a Go ring.
    pub fn with_go_base_path(self, base_path: &str) -> Self {
        let elsewhere = base_path.as_bytes() != super::endpoints::PREFIX;
        Sites { go_base_path: elsewhere.then(|| base_path.as_bytes().into()), ..self }
    }

    /// Whether a path is a Go peer's question and no client's.
    #[inline]
    pub fn is_go_question(&self, path: &[u8]) -> bool {
        self.go_base_path.as_ref().is_some_and(|base_path| path.starts_with(base_path))
    }

    /// Finds the group of a target and writes the key into `key`.
    ///
    /// # Errors
    /// No group serves the host (421), or none the path (404).
    #[inline]
    pub fn route(
        &self,
        authority: Option<&Authority<'_>>,
        path: &[u8],
        query: Option<&[u8]>,
        key: &mut Vec<u8>,
    ) -> Result<&Arc<Site>, NoRoute> {
        let host = authority.map_or("", |authority| &*authority.host);
        let route = self.router.find(host, path)?;
        let site = self.sites.get(route.group).ok_or(NoRoute::UnknownPath)?;
        let keys = &site.group.keys;
        match authority {
            Some(authority) if keys.with_host && authority.port.is_some() => {
                keys.write_key(&authority.to_string(), route.rest, query, key);
            }
            _ => keys.write_key(host, route.rest, query, key),
        }
        Ok(site)
    }
}

/// What most origins know.
const OTHER_METHODS: [&str; 5] = ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
