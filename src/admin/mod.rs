//! Everything under `/_groupcache/`: who is asked for what, who may ask, and the answer.
//!
//! The name is decided on the exact bytes of the target; what is not known here is 404 and never a key of a group.

pub mod access;
mod explain;
mod purge;
mod stats;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::admin::access::{
    Caller, Denied, declares_json, may_act, may_ask_as_go_peer, may_purge, may_read, may_upgrade,
};
use crate::edge::endpoints::{EndpointAnswer, EndpointRequest, EndpointResponse, Endpoints, PREFIX};
use crate::fields::Fields;
use crate::peer::go::{GoSet, answer_go, deleted_by_go};
use crate::peer::handshake::is_upgrade;
use crate::purge::Target;
use crate::purging::PurgeRequest;
use crate::server::node::Node;
use crate::server::owner::{CacheOwner, Conversation};
use crate::server::shutdown::State;

/// The endpoints of a node.
pub struct Admin {
    node: Arc<Node>,
    owner: CacheOwner,
}

impl Admin {
    /// The endpoints of `node`.
    pub fn new(node: Arc<Node>) -> Self {
        let owner = CacheOwner { cache: node.cache.clone(), groups: node.groups.clone(), local: node.local.clone() };
        Admin { node, owner }
    }

    async fn answer(&self, request: &EndpointRequest, body: &[u8]) -> EndpointAnswer {
        let (path, query) = split_query(&request.target);
        if is_purge_of_target(request) {
            return match purge::of_method(&self.node, request) {
                Ok(wanted) => self.purge(wanted, false).await,
                Err(reason) => text(404, format!("{reason}\n")),
            };
        }
        let Some(name) = path.strip_prefix(PREFIX) else {
            return self.answer_go_peer(request, path, body).await;
        };
        match name {
            b"health" | b"ready" if !is_read(request) => method_not_allowed(),
            // The process is alive if it can say so.
            b"health" => text(200, "ok\n"),
            b"ready" => match self.node.lifecycle.state() {
                State::Ready => text(200, "ok\n"),
                state => text(503, format!("{}\n", state.as_str())),
            },
            b"stats" | b"explain" => match self.read_denied(request) {
                Some(denied) => self.deny(denied),
                None if !is_read(request) => method_not_allowed(),
                None if name == b"stats" => json(200, &stats::of(&self.node)),
                None => match explain::explain(&self.node, query, request.now) {
                    Ok(explanation) => json(200, &explanation),
                    Err(reason) => text(400, format!("{reason}\n")),
                },
            },
            b"drain" | b"reload" => match self.act_denied(request) {
                Some(denied) => self.deny(denied),
                None if request.method != "POST" => only_post(),
                None if name == b"drain" => self.drain(body),
                None => self.reload().await,
            },
            b"purge" => match purge::read(&self.node, body) {
                Ok(wanted) => self.purge(wanted.request, wanted.accept_partial).await,
                Err(reason) => text(400, format!("{reason}\n")),
            },
            b"" => self.upgrade(request),
            _ => self.answer_go_peer(request, path, body).await,
        }
    }

    async fn purge(&self, wanted: PurgeRequest, accept_partial: bool) -> EndpointAnswer {
        let mut receipt = self.node.cache.purge_everywhere(wanted).await;
        if let Some(own) = receipt.nodes.first_mut().filter(|own| own.url.is_empty()) {
            own.url = self.node.own_url();
        }
        let status = purge::status(&receipt, accept_partial);
        let more: &[(&str, &str)] = if status == 503 { &[("Retry-After", "1")] } else { &[] };
        json_with(status, &receipt, more)
    }

    /// Whether the caller may purge here, before its body is read.
    fn purge_denied(&self, request: &EndpointRequest, is_json: Option<bool>) -> Option<Denied> {
        let admin = &self.node.current.load().config.admin;
        may_purge(admin, &self.caller(request), &request.host, is_json).err()
    }

    fn read_denied(&self, request: &EndpointRequest) -> Option<Denied> {
        if !request.roles.admin {
            return Some(Denied::NotHere);
        }
        may_read(&self.node.current.load().config.admin, &self.caller(request)).err()
    }

    fn act_denied(&self, request: &EndpointRequest) -> Option<Denied> {
        if !request.roles.admin {
            return Some(Denied::NotHere);
        }
        may_act(&self.node.current.load().config.admin, &self.caller(request), &request.host).err()
    }

    fn drain(&self, body: &[u8]) -> EndpointAnswer {
        #[derive(Default, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wish {
            #[serde(default)]
            undo: bool,
        }
        let wish: Result<Wish, _> = if body.is_empty() { Ok(Wish::default()) } else { serde_json::from_slice(body) };
        let Ok(wish) = wish else { return text(400, "expected no body, {} or {\"undo\": true}\n") };
        let changed = if wish.undo { self.node.undo_drain() } else { self.node.drain() };
        if changed {
            tracing::info!(undo = wish.undo, "told to drain");
        }
        let state = self.node.lifecycle.state();
        let done = wish.undo != matches!(state, State::Draining | State::Stopping);
        json(if done { 200 } else { 409 }, &serde_json::json!({ "state": state.as_str(), "changed": changed }))
    }

    async fn reload(&self) -> EndpointAnswer {
        let Some(reloader) = self.node.reloader.get().and_then(std::sync::Weak::upgrade) else {
            return text(503, "starting\n");
        };
        // In a task of its own: a caller that leaves must not stop it half way.
        let applied = tokio::spawn(async move { reloader.read_again().await }).await;
        match applied.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(applied) => json(
                200,
                &serde_json::json!({ "applied": true, "needs_restart": applied.needs_restart, "cleared": applied.cleared }),
            ),
            Err(lines) => text(400, format!("{lines}\n")),
        }
    }

    /// The native protocol takes the connection.
    fn upgrade(&self, request: &EndpointRequest) -> EndpointAnswer {
        if !request.roles.peers || !request.http_11 || !is_upgrade(&request.method, &request.target, &request.fields) {
            return self.deny(Denied::NotHere);
        }
        let current = self.node.current.load();
        let has_secret = current.config.fleet.as_ref().is_some_and(|fleet| !fleet.secrets.is_empty());
        if let Err(denied) = may_upgrade(has_secret, &self.caller(request)) {
            return self.deny(denied);
        }
        // The protocol itself says 101.
        EndpointAnswer::Upgrade(Fields::empty(), Box::new(Conversation::of(&self.node)))
    }

    async fn answer_go_peer(&self, request: &EndpointRequest, path: &[u8], body: &[u8]) -> EndpointAnswer {
        let members = self.node.members.load_full();
        let (Some(dialect), Some(fleet), true) = (members.dialect(), &members.config, request.roles.peers) else {
            return self.deny(Denied::NotHere);
        };
        if let Err(denied) = may_ask_as_go_peer(&members.addresses, &fleet.go.allow, &self.caller(request)) {
            return self.deny(denied);
        }
        if request.method == "DELETE" && dialect.is_fork() {
            // The sender tells all of its peers; what the nodes of ours hold goes with it, whichever of them it told first.
            let Some((group, key)) = deleted_by_go(dialect, &fleet.go.base_path, path) else {
                return text(400, "bad request\n");
            };
            let Some(group) = self.node.groups.load().find(&group).cloned() else {
                return text(404, "no such group\n");
            };
            let targets = vec![Target::Key(group.name.clone(), key)];
            let wanted = PurgeRequest { targets, timeout: GO_DELETE_TIMEOUT, ..PurgeRequest::default() };
            self.node.cache.purge_everywhere(wanted).await;
            return text(200, "");
        }
        if request.method == "PUT" && dialect.is_fork() && fleet.go.accept_set {
            let set = GoSet::parse(dialect, &fleet.go.base_path, path, body, request.now);
            let Some(GoSet { group, key, value, lifetime }) = set else { return text(400, "bad request\n") };
            let group = self.node.groups.load().find(&group).cloned();
            let Some(group) = group.filter(|group| group.keys.target_of(&key).is_some()) else {
                return text(404, "no such group or key\n");
            };
            let lifetime = lifetime.unwrap_or(group.rules.default_lifetime).min(group.rules.lifetime_max);
            self.node.cache.set(&group, key, value, lifetime).await;
            return text(200, "");
        }
        if request.method != "GET" {
            return method_not_allowed();
        }
        if path.len() != request.target.len() {
            // Go's clients put a question mark of the key into the path, escaped.
            return text(400, "bad request\n");
        }
        let value_bytes_max = self.node.current.load().config.groups.iter().map(|group| group.max_object_bytes).max();
        let answer = answer_go(
            &self.owner,
            dialect,
            &fleet.go.base_path,
            path,
            request.now,
            value_bytes_max.unwrap_or_default(),
        )
        .await;
        respond(answer.status, answer.content_type, &[], answer.body)
    }

    /// How long the body of a `PUT` may be: that of a Go peer that may set values, the largest value with its name.
    fn set_bytes_max(&self, request: &EndpointRequest) -> Result<usize, EndpointAnswer> {
        let members = self.node.members.load_full();
        let (Some(dialect), Some(fleet), true) = (members.dialect(), &members.config, request.roles.peers) else {
            return Ok(0);
        };
        may_ask_as_go_peer(&members.addresses, &fleet.go.allow, &self.caller(request))
            .map_err(|denied| self.deny(denied))?;
        if !dialect.is_fork() || !fleet.go.accept_set {
            return Err(method_not_allowed());
        }
        let largest = self.node.current.load().config.groups.iter().map(|group| group.max_object_bytes).max();
        Ok(usize::try_from(largest.unwrap_or_default()).unwrap_or(usize::MAX).saturating_add(SET_BYTES_BESIDE))
    }

    fn caller<'a>(&self, request: &'a EndpointRequest) -> Caller<'a> {
        Caller {
            address: request.peer.map(|peer| peer.ip()),
            listener: self.node.listener_of(request.local),
            direct: request.direct,
            fields: &request.fields,
        }
    }

    fn deny(&self, denied: Denied) -> EndpointAnswer {
        self.node.stats.rejects.increment(denied.word());
        match denied {
            Denied::NotHere => text(404, "not found\n"),
            Denied::Forbidden => text(403, "forbidden\n"),
            Denied::TokenNeeded => respond(
                401,
                TEXT,
                &[
                    ("WWW-Authenticate", "Bearer realm=\"groupcache\""),
                    ("WWW-Authenticate", "Basic realm=\"groupcache\""),
                ],
                Bytes::from_static(b"a token is needed\n"),
            ),
        }
    }
}

#[async_trait]
impl Endpoints for Admin {
    /// A body is read only of those who may act, and where it can mean something.
    fn admit(&self, request: &EndpointRequest) -> Result<usize, EndpointResponse> {
        let refusal = |answer| match answer {
            EndpointAnswer::Response(response) => Err(response),
            EndpointAnswer::Upgrade(..) => Ok(0),
        };
        if is_purge_of_target(request) {
            // Like any method that nobody may use here, whatever token might help.
            return match self.purge_denied(request, None) {
                Some(_) => refusal(self.deny(Denied::Forbidden)),
                None => Ok(0),
            };
        }
        let acts = [&b"/_groupcache/drain"[..], b"/_groupcache/reload"].contains(&split_query(&request.target).0);
        if acts {
            let takes_body = request.method == "POST" && self.act_denied(request).is_none();
            return Ok(if takes_body { WISH_BYTES_MAX } else { 0 });
        }
        if &request.target[..] != PURGE_TARGET {
            return if request.method == "PUT" { self.set_bytes_max(request).or_else(refusal) } else { Ok(0) };
        }
        if !request.roles.admin {
            return refusal(self.deny(Denied::NotHere));
        }
        let is_json = declares_json(&request.fields);
        match self.purge_denied(request, Some(is_json)) {
            Some(denied) => refusal(self.deny(denied)),
            None if request.method != "POST" => {
                refusal(respond(405, TEXT, &[("Allow", "POST")], Bytes::from_static(b"method not allowed\n")))
            }
            None if !is_json => refusal(text(415, "expected Content-Type: application/json\n")),
            None => Ok(purge::BODY_BYTES_MAX),
        }
    }

    async fn handle(&self, request: EndpointRequest, body: Bytes) -> EndpointAnswer {
        self.answer(&request, &body).await
    }
}

/// Whether the method purges what the target names; below our own prefix nothing can be purged so.
fn is_purge_of_target(request: &EndpointRequest) -> bool {
    request.method == "PURGE" && request.roles.clients && !request.target.starts_with(PREFIX)
}

fn is_read(request: &EndpointRequest) -> bool {
    matches!(&*request.method, "GET" | "HEAD")
}

fn split_query(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'?', target) {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    }
}

fn method_not_allowed() -> EndpointAnswer {
    respond(405, TEXT, &[("Allow", "GET, HEAD")], Bytes::from_static(b"method not allowed\n"))
}

fn only_post() -> EndpointAnswer {
    respond(405, TEXT, &[("Allow", "POST")], Bytes::from_static(b"method not allowed\n"))
}

fn text(status: u16, text: impl Into<Cow<'static, str>>) -> EndpointAnswer {
    let body = match text.into() {
        Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
        Cow::Owned(text) => text.into(),
    };
    respond(status, TEXT, &[], body)
}

fn json(status: u16, value: &impl serde::Serialize) -> EndpointAnswer {
    json_with(status, value, &[])
}

fn json_with(status: u16, value: &impl serde::Serialize, more: &[(&str, &str)]) -> EndpointAnswer {
    match serde_json::to_vec_pretty(value) {
        Ok(mut body) => {
            body.push(b'\n');
            respond(status, "application/json", more, body.into())
        }
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            text(500, "failed\n")
        }
    }
}

/// No cache may keep what is only true now, and no browser may guess a type.
fn respond(status: u16, content_type: &str, more: &[(&str, &str)], body: Bytes) -> EndpointAnswer {
    let fields = [("Content-Type", content_type), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")];
    // All of these are constants.
    let fields = Fields::from_pairs(fields.iter().chain(more).copied()).unwrap_or_default();
    EndpointAnswer::Response(EndpointResponse { status, fields, body })
}

/// The names of group and key in a Go peer's `PUT`, and what frames them.
const SET_BYTES_BESIDE: usize = 64 * 1024;
/// How long a Go peer that deletes a key is made to wait for the rest of the fleet.
const GO_DELETE_TIMEOUT: Duration = Duration::from_secs(1);

const PURGE_TARGET: &[u8] = b"/_groupcache/purge";
/// The wishes of `drain` are a few words.
const WISH_BYTES_MAX: usize = 1024;

const TEXT: &str = "text/plain; charset=utf-8";
