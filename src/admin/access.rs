//! Who may ask for what under `/_groupcache/`.
//!
//! | what | where | who |
//! |---|---|---|
//! | health, ready | every listener | everybody |
//! | statistics, explain | `admin.address` | addresses of `admin.allow`, or a token |
//! | the same, without `admin.address` | listeners for clients | loopback, asking directly |
//! | purge | where statistics are; `PURGE` on the listeners for clients, too | `admin.token`, addresses of `admin.purge_allow`, loopback |
//! | drain, reload | as for statistics | `admin.token`; or loopback asking directly, and no page of a browser |
//! | a native peer | listeners with the peers' role | who proves the secret; without one, loopback asking directly |
//! | a Go peer | the same, on a Go ring | addresses of listed peers and of `fleet.go.allow` |
//!
//! Loopback is trusted only on a listener that is bound to loopback, and only when it asks for itself: a proxy on the same
//! machine speaks for the whole world. Where a listener has not the role, there is nothing (404); where it has, but the
//! caller may not, that is said (403, or 401 where a token would help).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use ring::digest::{SHA256, digest};

use crate::config::{Admin, Secret};
use crate::fields::Fields;

/// What decides over a caller.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Where the connection comes from.
    pub address: Option<IpAddr>,
    /// Where the listener is bound; not where this connection went, which may be loopback on a listener for every address.
    pub listener: Option<SocketAddr>,
    /// Whether nothing in the request says that it was forwarded.
    pub direct: bool,
    /// The fields of the request.
    pub fields: &'a Fields,
}

/// Why a caller is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// There is nothing of the kind on this listener.
    NotHere,
    /// A token would help.
    TokenNeeded,
    /// Nothing helps.
    Forbidden,
}

impl Denied {
    /// The status that says it.
    pub fn status(self) -> u16 {
        match self {
            Denied::NotHere => 404,
            Denied::TokenNeeded => 401,
            Denied::Forbidden => 403,
        }
    }

    /// The word under which it is counted.
    pub fn word(self) -> &'static str {
        match self {
            Denied::NotHere => "admin_not_here",
            Denied::TokenNeeded => "admin_token",
            Denied::Forbidden => "admin_forbidden",
        }
    }
}

impl Caller<'_> {
    /// Whether the caller is this machine, asking for itself, on a listener that only this machine reaches.
    pub fn is_trusted_loopback(&self) -> bool {
        self.is_direct_loopback() && self.listener.is_some_and(|listener| listener.ip().to_canonical().is_loopback())
    }

    fn is_direct_loopback(&self) -> bool {
        self.direct && self.address.is_some_and(|address| address.to_canonical().is_loopback())
    }

    fn is_in(&self, nets: &[IpNet]) -> bool {
        let Some(address) = self.address.map(|address| address.to_canonical()) else { return false };
        // Loopback on a list means loopback as everywhere: this machine, asking for itself.
        nets.iter().any(|net| net.contains(&address)) && (!address.is_loopback() || self.is_trusted_loopback())
    }
}

/// Whether the caller may read statistics and explanations on a listener that has the role.
///
/// # Errors
/// Why not.
pub fn may_read(admin: &Admin, caller: &Caller<'_>) -> Result<(), Denied> {
    let has_token = || shows_one_of(caller.fields, admin.read_tokens.iter().chain(&admin.tokens));
    let tokens_exist = !admin.read_tokens.is_empty() || !admin.tokens.is_empty();
    match admin.address {
        Some(_) => {
            if caller.is_in(&admin.allow) || has_token() {
                return Ok(());
            }
            Err(if tokens_exist { Denied::TokenNeeded } else { Denied::Forbidden })
        }
        // Without an address of its own, administration is this machine's business whoever shows what.
        None => match caller.is_direct_loopback() {
            true if caller.is_trusted_loopback() || has_token() => Ok(()),
            true if tokens_exist => Err(Denied::TokenNeeded),
            _ => Err(Denied::Forbidden),
        },
    }
}

/// Whether the caller may change something on a listener that has the role: with the token that may act, or as this machine.
/// A page in a browser of this machine is not this machine: it can send neither JSON nor another Host than its own, and says
/// where it comes from.
///
/// # Errors
/// Why not.
pub fn may_act(admin: &Admin, caller: &Caller<'_>, host: &[u8]) -> Result<(), Denied> {
    if admin.address.is_none() && !caller.is_direct_loopback() {
        return Err(Denied::Forbidden);
    }
    if shows_one_of(caller.fields, admin.tokens.iter()) {
        return Ok(());
    }
    let json = declares_json(caller.fields);
    if caller.is_trusted_loopback() && json && is_loopback_host(host) && !caller.fields.contains("origin") {
        return Ok(());
    }
    Err(if admin.tokens.is_empty() { Denied::Forbidden } else { Denied::TokenNeeded })
}

/// Whether the caller may purge on a listener where that is answered. `is_json` says whether a body is declared as JSON, which a
/// page in a browser cannot send to another site without being asked; the method `PURGE`, which it cannot send either, has none.
///
/// # Errors
/// Why not.
pub fn may_purge(admin: &Admin, caller: &Caller<'_>, host: &[u8], is_json: Option<bool>) -> Result<(), Denied> {
    let is_listed = caller.is_in(&admin.purge_allow) && !caller.is_direct_loopback();
    if is_json.is_some() && admin.address.is_none() && !caller.is_direct_loopback() && !is_listed {
        return Err(Denied::Forbidden);
    }
    if shows_one_of(caller.fields, admin.tokens.iter()) {
        return Ok(());
    }
    let shows_another = caller.fields.contains("authorization") && !admin.tokens.is_empty();
    if shows_another {
        return Err(Denied::TokenNeeded);
    }
    if is_listed {
        return Ok(());
    }
    if caller.is_trusted_loopback()
        && is_loopback_host(host)
        && is_own_origin(caller.fields, host)
        && is_json != Some(false)
    {
        return Ok(());
    }
    Err(if admin.tokens.is_empty() { Denied::Forbidden } else { Denied::TokenNeeded })
}

/// Whether the body is declared as JSON.
pub fn declares_json(fields: &Fields) -> bool {
    let media_type = fields.get("content-type").and_then(|value| value.split(|&byte| byte == b';').next());
    media_type.is_some_and(|media_type| media_type.trim_ascii().eq_ignore_ascii_case(b"application/json"))
}

/// Whether no page of another site sent the request.
fn is_own_origin(fields: &Fields, host: &[u8]) -> bool {
    fields.get_all("origin").all(|origin| {
        let authority = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
    }) && fields.get("sec-fetch-site").is_none_or(|site| matches!(site, b"same-origin" | b"none"))
}

fn is_loopback_host(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether the caller may speak the native protocol; with a secret, that is for the handshake to find out.
///
/// # Errors
/// Why not.
pub fn may_upgrade(has_secret: bool, caller: &Caller<'_>) -> Result<(), Denied> {
    if has_secret || caller.is_direct_loopback() { Ok(()) } else { Err(Denied::Forbidden) }
}

/// Whether the caller may ask as a Go peer, which can prove nothing: `peers` are the addresses of the listed ones.
///
/// # Errors
/// Why not.
pub fn may_ask_as_go_peer(peers: &[IpAddr], allow: &[IpNet], caller: &Caller<'_>) -> Result<(), Denied> {
    let Some(address) = caller.address.map(|address| address.to_canonical()) else { return Err(Denied::Forbidden) };
    let known =
        peers.iter().any(|peer| peer.to_canonical() == address) || allow.iter().any(|net| net.contains(&address));
    if caller.direct && known { Ok(()) } else { Err(Denied::Forbidden) }
}

/// Whether `Authorization` shows one of the tokens, as Bearer token (RFC 6750) or as Basic password (RFC 7617).
fn shows_one_of<'a>(fields: &Fields, tokens: impl Iterator<Item = &'a Secret>) -> bool {
    let Some(shown) = fields.get("authorization").and_then(shown_token) else { return false };
    let shown = digest(&SHA256, &shown);
    // Digests are compared whole and all tokens are looked at, so that the time tells nothing of what is right.
    tokens.fold(false, |found, token| {
        let wanted = digest(&SHA256, token.expose().as_bytes());
        let difference = shown.as_ref().iter().zip(wanted.as_ref()).fold(0, |sum, (a, b)| sum | (a ^ b));
        found | (std::hint::black_box(difference) == 0)
    })
}

fn shown_token(value: &[u8]) -> Option<Vec<u8>> {
    let value = std::str::from_utf8(value).ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    let credentials = credentials.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(credentials.as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = decode_base64(credentials.as_bytes())?;
    let colon = decoded.iter().position(|&byte| byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

/// Base64 as of RFC 4648 section 4; `None` for anything else.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in text[..text.len() - padding].chunks(4) {
        let mut bits = 0u32;
        for &byte in chunk {
            bits = bits << 6 | u32::from(value(byte)?);
        }
        bits <<= 6 * (4 - chunk.len());
        decoded.extend_from_slice(&bits.to_be_bytes()[1..chunk.len()]);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, SystemEnvironment};

    const OWN: &str = "admin: { address: 127.0.0.1:8081, allow: [127.0.0.0/8, '::1/128', 10.0.0.0/8]";

    fn admin(text: &str) -> Admin {
        let text = format!("{text}\ngroups: [{{ name: a, origin: 'http://127.0.0.1:9' }}]\n");
        let parsed = Config::parse(&text, "test", std::path::Path::new(""), &SystemEnvironment::default());
        parsed.unwrap_or_else(|problems| panic!("{problems}")).config.admin
    }

    fn fields(authorization: &str) -> Fields {
        match authorization {
            "" => Fields::empty(),
            value => Fields::from_pairs([("Authorization", value)]).unwrap(),
        }
    }

    #[test]
    fn who_may_read() {
        let tokens = ", read_token: reading-token-12, token: acting-token-123 }";
        let own = admin(&format!("{OWN} }}"));
        let own_tokens = admin(&format!("{OWN}{tokens}"));
        let shared = admin("admin: {}");
        let shared_tokens = admin("admin: { read_token: reading-token-12 }");
        let (bearer, basic, acting) =
            ("Bearer reading-token-12", "Basic bWU6cmVhZGluZy10b2tlbi0xMg==", "bearer acting-token-123");
        for (case, admin, from, listener, direct, shown, expected) in [
            ("loopback on the own address", &own, "127.0.0.1", "127.0.0.1:1", true, "", Ok(())),
            ("IPv4 in IPv6", &own, "::ffff:127.0.0.1", "[::1]:1", true, "", Ok(())),
            ("an address on the list", &own, "10.1.2.3", "0.0.0.0:1", true, "", Ok(())),
            ("an address not on the list", &own, "192.0.2.1", "0.0.0.0:1", true, "", Err(Denied::Forbidden)),
            ("a proxy on this machine", &own, "127.0.0.1", "127.0.0.1:1", false, "", Err(Denied::Forbidden)),
            ("loopback, listener for all", &own, "127.0.0.1", "0.0.0.0:1", true, "", Err(Denied::Forbidden)),
            ("a token would help", &own_tokens, "192.0.2.1", "0.0.0.0:1", true, "", Err(Denied::TokenNeeded)),
            ("the reading token", &own_tokens, "192.0.2.1", "0.0.0.0:1", true, bearer, Ok(())),
            ("as Basic password", &own_tokens, "192.0.2.1", "0.0.0.0:1", false, basic, Ok(())),
            ("the acting token", &own_tokens, "192.0.2.1", "0.0.0.0:1", true, acting, Ok(())),
            ("a wrong token", &own_tokens, "192.0.2.1", "0.0.0.0:1", true, "Bearer no", Err(Denied::TokenNeeded)),
            ("nonsense", &own_tokens, "192.0.2.1", "0.0.0.0:1", true, "Basic ===", Err(Denied::TokenNeeded)),
            ("clients' listener, loopback", &shared, "127.0.0.1", "127.0.0.1:1", true, "", Ok(())),
            ("clients' listener, forwarded", &shared, "127.0.0.1", "127.0.0.1:1", false, "", Err(Denied::Forbidden)),
            ("clients' listener for all", &shared, "127.0.0.1", "[::]:1", true, "", Err(Denied::Forbidden)),
            ("clients' listener, from afar", &shared, "10.1.2.3", "[::]:1", true, "", Err(Denied::Forbidden)),
            ("from afar with a token", &shared_tokens, "10.1.2.3", "[::]:1", true, bearer, Err(Denied::Forbidden)),
            ("loopback with a token", &shared_tokens, "127.0.0.1", "[::]:1", true, bearer, Ok(())),
            ("loopback without it", &shared_tokens, "127.0.0.1", "[::]:1", true, "", Err(Denied::TokenNeeded)),
        ] {
            let fields = fields(shown);
            let (address, listener) = (Some(from.parse().unwrap()), Some(listener.parse().unwrap()));
            let caller = Caller { address, listener, direct, fields: &fields };
            assert_eq!(may_read(admin, &caller), expected, "{case}");
        }
    }

    #[test]
    fn who_may_ask_as_a_go_peer() {
        let (peers, allow) = (["10.0.0.5".parse().unwrap()], ["10.9.0.0/16".parse().unwrap()]);
        let fields = Fields::empty();
        for (from, direct, expected) in [
            ("10.0.0.5", true, Ok(())),
            ("::ffff:10.0.0.5", true, Ok(())),
            ("10.9.1.1", true, Ok(())),
            ("10.0.0.6", true, Err(Denied::Forbidden)),
            ("10.0.0.5", false, Err(Denied::Forbidden)),
        ] {
            let caller = Caller { address: Some(from.parse().unwrap()), listener: None, direct, fields: &fields };
            assert_eq!(may_ask_as_go_peer(&peers, &allow, &caller), expected, "{from}");
        }
    }

    #[test]
    fn base64_is_read_strictly() {
        for (text, expected) in [
            ("", Some("")),
            ("Zg==", Some("f")),
            ("Zm8=", Some("fo")),
            ("Zm9v", Some("foo")),
            ("Zm9vYg==", Some("foob")),
            ("Zg", None),
            ("Z===", None),
            ("Zg=a", None),
            ("Zm 9", None),
        ] {
            assert_eq!(decode_base64(text.as_bytes()).as_deref(), expected.map(str::as_bytes), "{text}");
        }
    }
}
