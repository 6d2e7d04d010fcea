//! What is to be done with a checked request, whatever version of HTTP brought it. Nothing in here waits.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use pingora::protocols::SocketDigest;

use super::Edge;
use super::endpoints::{self, EndpointRequest, RoleTable, Roles};
use super::pass::PassFacts;
use super::request_head::{BodyFraming, Method, Refusal, RequestHead, Seen};
use super::response::{Response, Wanted};
use super::sites::{Site, Sites};
use crate::cache::{RangeAsked, Request};
use crate::clock::Now;
use crate::fields::Fields;
use crate::freshness::RequestDirectives;
use crate::key::HashedKey;
use crate::purge::Stamp;
use crate::semantics::cache_status::ForwardReason;
use crate::semantics::forward::Credentials;
use crate::semantics::ranges::{IfRange, RangeSet};
use crate::semantics::router::NoRoute;
use crate::source;
use crate::store::Role;

/// What is known of a client's connection.
#[derive(Clone, Copy, Debug)]
pub struct ClientFacts {
    /// Address of the client.
    pub peer: Option<SocketAddr>,
    /// Address the client connected to.
    pub local: Option<SocketAddr>,
    /// What that listener is for.
    pub roles: Roles,
    /// Whether the connection is protected by TLS.
    pub tls: bool,
}

impl ClientFacts {
    /// What the socket says; `tls` is known to the caller.
    pub fn of(digest: Option<&SocketDigest>, tls: bool, roles: &RoleTable) -> Self {
        let peer = digest.and_then(|digest| digest.peer_addr()?.as_inet().copied());
        let local = digest.and_then(|digest| digest.local_addr()?.as_inet().copied());
        ClientFacts { peer, local, roles: roles.roles_of(local), tls }
    }
}

/// What goes to the origin of the field section that a connection knows, at the site where that was asked: nothing but these two
/// decides it, so it is found out once and not with every load.
#[derive(Default)]
pub struct KnownForwarded(Option<(Weak<Site>, Fields)>);

impl KnownForwarded {
    /// The section is not known any more.
    pub fn forget(&mut self) {
        self.0 = None;
    }

    fn of(&mut self, head: &RequestHead<'_>, site: &Arc<Site>, credentials: Credentials) -> Fields {
        match &self.0 {
            // A weak pointer keeps the place of its site from being used again.
            Some((of, fields)) if head.is_known() && of.as_ptr() == Arc::as_ptr(site) => fields.clone(),
            _ => {
                let fields = site.group.forward.forwarded(&head.to_fields(), credentials);
                self.0 = head.is_known().then(|| (Arc::downgrade(site), fields.clone()));
                fields
            }
        }
    }
}

/// What is to be done with a request.
#[allow(clippy::large_enum_variant, reason = "the large one is the hit, which allocates nothing")]
pub enum Decision<'s> {
    /// A fresh answer from memory, and its group.
    Hit(Response, &'s Arc<Site>),
    /// The cache has to be asked.
    Load(Box<Load>),
    /// It passes to the origin.
    Pass(Box<PassFacts>),
    /// It is for an endpoint.
    Endpoint(Box<EndpointRequest>),
    /// It is refused, with these fields beside the usual ones; counted with the group if there is one.
    Refuse(Refusal, Fields, Option<Arc<Site>>),
}

/// A request that memory cannot answer.
pub struct Load {
    /// The group.
    pub site: Arc<Site>,
    /// What the cache is asked.
    pub request: Request,
    /// What the client wants of the answer.
    pub wanted: Wanted,
    /// Which purges were recorded when the head arrived, in case the cache has no part in it after all; `None` where nothing
    /// passes.
    pub may_pass: Option<Stamp>,
}

impl Load {
    /// The facts of a request that passes after all, for this `reason`; `None` where nothing passes, or the key has no target.
    pub fn into_pass(
        self,
        received_target: &[u8],
        client: &ClientFacts,
        started: Now,
        reason: &'static str,
    ) -> Option<PassFacts> {
        let purges = self.may_pass?;
        let (_, target) = self.site.group.keys.target_of(&self.request.key)?;
        Some(PassFacts {
            socket: None,
            site: self.site,
            key: self.request.key,
            target,
            received_target: Bytes::copy_from_slice(received_target),
            reason: ForwardReason::Bypass,
            detail: Some(reason),
            client: client.peer,
            tls: client.tls,
            started,
            purges,
        })
    }
}

/// What matters of a request once its answer is known.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Whether the version is at least 1.1.
    pub http_11: bool,
    /// The method is `HEAD`.
    pub head_only: bool,
    /// Whether the connection may stay open.
    pub keep_alive: bool,
    /// When the head arrived.
    pub started: Now,
}

/// Decides by the groups of `sites`. For a hit nothing is allocated; `key` is used again and again. `known` is forgotten whenever
/// the connection knows another section.
#[inline]
pub fn decide<'s>(
    edge: &Edge,
    sites: &'s Sites,
    head: &RequestHead<'_>,
    client: &ClientFacts,
    now: Now,
    key: &mut Vec<u8>,
    known: &mut KnownForwarded,
) -> (Decision<'s>, Exit) {
    let head_only = head.method == Method::Head;
    // A body that nobody reads ends the connection; who reads it says so.
    let keep_alive = head.keep_alive && !edge.drain.has_begun();
    let mut exit = Exit { http_11: head.http_11, head_only, keep_alive, started: now };
    let decision = decide_within(edge, sites, head, client, now, key, known);
    if head.body != BodyFraming::None && !matches!(decision, Decision::Pass(_) | Decision::Endpoint(_)) {
        exit.keep_alive = false;
    }
    (decision, exit)
}

#[inline]
fn decide_within<'s>(
    edge: &Edge,
    sites: &'s Sites,
    head: &RequestHead<'_>,
    client: &ClientFacts,
    now: Now,
    scratch: &mut Vec<u8>,
    known: &mut KnownForwarded,
) -> Decision<'s> {
    if head.path().starts_with(endpoints::PREFIX) {
        return endpoint(head, client, now);
    }
    if client.roles.peers && sites.is_go_question(head.path()) {
        return endpoint(head, client, now);
    }
    if !client.roles.clients {
        return refuse(Refusal::new(404, "not_for_clients", "not found"));
    }
    let site = match sites.route(head.authority.as_ref(), head.path(), head.query(), scratch) {
        Ok(site) => site,
        Err(no_route) => return refuse(no_group(no_route)),
    };
    // Never the origin's business: whoever may purge is answered here, and nobody else gets anywhere with it.
    if head.method.as_str() == "PURGE" {
        return endpoint(head, client, now);
    }
    let group = &*site.group;
    let passing = |reason, detail| pass(edge, head, site, scratch, reason, detail, client, now);
    if let Method::Other(method) = head.method {
        if !site.passes(method) {
            let allow = Fields::from_pairs([("Allow", site.allow())]).unwrap_or_default();
            return Decision::Refuse(Refusal::new(405, "method", "method not allowed"), allow, Some(site.clone()));
        }
        return passing(ForwardReason::Method, None);
    }
    // Where nothing passes, a body is ignored: what it says is no part of the key.
    if site.target.is_some() {
        let detail = match () {
            () if head.body != BodyFraming::None => Some("body"),
            () if !group.cached => Some("cache-off"),
            () if group.cookies_pass && head.seen.any(Seen::COOKIE) => Some("cookies"),
            () => None,
        };
        if detail.is_some() {
            return passing(ForwardReason::Bypass, detail);
        }
    }
    let directives = match head.seen.any(Seen::DIRECTIVES) {
        true => group.directives(&head.fields_where(is_directive)),
        false => RequestDirectives::default(),
    };
    let credentials = Credentials { authorization: head.seen.any(Seen::AUTHORIZATION), cookies: false };
    let key = HashedKey::new(group.id, scratch);
    let forwarded = || group.forward.forwarded(&head.to_fields(), credentials);
    match edge.cache.find_fresh(group, &key, forwarded, &directives, now) {
        Some(hit) => Decision::Hit(Response::hit(hit.entry, hit.role == Role::Hot, head), site),
        None => {
            let may_pass = site.target.is_some() && !is_too_large(edge, head);
            let may_pass = may_pass.then(|| edge.cache.purges_known());
            load(head, site, scratch, known, directives, credentials, may_pass)
        }
    }
}

#[cold]
fn endpoint(head: &RequestHead<'_>, client: &ClientFacts, now: Now) -> Decision<'static> {
    // Internal names are decided on the bytes received: any other spelling leads nowhere.
    if head.absolute {
        return refuse(Refusal::new(404, "not_found", "not found"));
    }
    Decision::Endpoint(Box::new(EndpointRequest {
        method: head.method.as_str().to_owned(),
        target: Bytes::copy_from_slice(head.target),
        host: Bytes::copy_from_slice(head.host),
        fields: head.to_fields(),
        http_11: head.http_11 && !head.http_2,
        peer: client.peer,
        local: client.local,
        roles: client.roles,
        tls: client.tls,
        direct: !head.seen.any(Seen::FORWARDED),
        now,
    }))
}

#[cold]
fn load(
    head: &RequestHead<'_>,
    site: &Arc<Site>,
    key: &[u8],
    known: &mut KnownForwarded,
    directives: RequestDirectives,
    credentials: Credentials,
    may_pass: Option<Stamp>,
) -> Decision<'static> {
    let wanted = Wanted::of(head);
    let range = || range_asked(wanted.head_only, &head.to_fields());
    let request = Request {
        key: Bytes::copy_from_slice(key),
        method: if wanted.head_only { source::Method::Head } else { source::Method::Get },
        forwarded: known.of(head, site, credentials),
        authorization: credentials.authorization,
        directives,
        range: head.seen.any(Seen::RANGE).then(range).flatten(),
    };
    Decision::Load(Box::new(Load { site: site.clone(), request, wanted, may_pass }))
}

#[cold]
#[allow(clippy::too_many_arguments)]
fn pass(
    edge: &Edge,
    head: &RequestHead<'_>,
    site: &Arc<Site>,
    key: &[u8],
    reason: ForwardReason,
    detail: Option<&'static str>,
    client: &ClientFacts,
    now: Now,
) -> Decision<'static> {
    if is_too_large(edge, head) {
        let refusal = Refusal::new(413, "body_bytes", "the body is too large");
        return Decision::Refuse(refusal, Fields::empty(), Some(site.clone()));
    }
    let Some((_, target)) = site.group.keys.target_of(key).filter(|_| site.target.is_some()) else {
        return refuse(Refusal::new(502, "no_origin", "the group has no origin to pass this to"));
    };
    Decision::Pass(Box::new(PassFacts {
        socket: None,
        site: site.clone(),
        key: Bytes::copy_from_slice(key),
        target,
        received_target: Bytes::copy_from_slice(head.target),
        reason,
        detail,
        client: client.peer,
        tls: client.tls,
        started: now,
        purges: edge.cache.purges_known(),
    }))
}

/// Whether the request says that its body is larger than bodies may be.
fn is_too_large(edge: &Edge, head: &RequestHead<'_>) -> bool {
    let bytes_max = edge.limits().body_bytes;
    matches!(head.body, BodyFraming::Length(bytes) if bytes_max > 0 && bytes > bytes_max)
}

fn refuse(refusal: Refusal) -> Decision<'static> {
    Decision::Refuse(refusal, Fields::empty(), None)
}

/// The refusal of a target that belongs to no group.
fn no_group(no_route: NoRoute) -> Refusal {
    match no_route {
        NoRoute::UnknownHost => Refusal::new(421, "unknown_host", "no group serves this host"),
        NoRoute::UnknownPath => Refusal::new(404, "no_group", "no group serves this path"),
    }
}

/// Whether a field tells a cache what to do.
fn is_directive(name: &str) -> bool {
    name.eq_ignore_ascii_case("cache-control") || name.eq_ignore_ascii_case("pragma")
}

/// The range of a `GET` that the cache may answer with a part.
fn range_asked(head_only: bool, fields: &Fields) -> Option<RangeAsked> {
    let method = if head_only { http::Method::HEAD } else { http::Method::GET };
    let set = RangeSet::parse(&method, fields)?;
    let if_range_value = fields.get("if-range").map(Bytes::copy_from_slice);
    Some(RangeAsked { set, if_range: IfRange::parse(fields), if_range_value })
}
