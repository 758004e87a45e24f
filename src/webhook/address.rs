//! Which addresses a webhook may reach, decided for the very address that is connected to. L3. With `target` the only file that names what ureq
//! keeps out of its promise of stability.
//!
//! A URL may come from anybody who can enqueue a job, and this process may stand where that person does not: beside a database, or
//! a cloud's metadata service. So every address that a host name leads to must be a public one, and the connection goes to
//! those addresses and to no other: a name that resolves to something else the next time changes nothing. Numbers in odd
//! spellings (`0x7f.1`, `2130706433`) are resolved by the system like names, and judged by what they come to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, DefaultConnector, NextTimeout};

use crate::webhook::target::AddQuery;

/// What is not public in IANA's registry of special addresses (<https://www.iana.org/assignments/iana-ipv4-special-registry>), as
/// first address and length of the prefix.
const DENIED_V4: [(Ipv4Addr, u32); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
/// The same (<https://www.iana.org/assignments/iana-ipv6-special-registry>). `::/96` holds the unspecified address, loopback and what
/// was compatible with IPv4; what carries an IPv4 address is denied whatever that is, but for [`NAT64`].
const DENIED_V6: [(Ipv6Addr, u32); 14] = [
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 96),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    (Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    (Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// The first 96 bits of an address whose last 32 are the IPv4 address that a gateway (NAT64) connects to. In a network with IPv6
/// alone the resolver (DNS64) answers so for every host that has an IPv4 address only. Source: RFC 6052, section 2.1. The prefix for a
/// network's own use, `64:ff9b:1::/48` (RFC 8215), stays denied: nobody knows where in it an address is.
const NAT64: u128 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0).to_bits() >> 32;

/// Whether anybody on the internet may be at `address`.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let is_in = |(net, prefix): &(Ipv4Addr, u32)| {
                (address.to_bits() ^ net.to_bits()).checked_shr(32 - prefix) == Some(0)
            };
            !DENIED_V4.iter().any(is_in)
        }
        IpAddr::V6(address) if address.to_bits() >> 32 == NAT64 => {
            let [.., a, b, c, d] = address.octets();
            is_public(Ipv4Addr::new(a, b, c, d).into())
        }
        IpAddr::V6(address) => {
            let is_in = |(net, prefix): &(Ipv6Addr, u32)| {
                (address.to_bits() ^ net.to_bits()).checked_shr(128 - prefix) == Some(0)
            };
            !DENIED_V6.iter().any(is_in)
        }
    }
}

/// A client that connects to public addresses, and to the hosts of `allow_private`.
pub(super) fn agent(config: Config, allow_private: Vec<String>) -> Agent {
    let (connector, names) = (DefaultConnector::default(), DefaultResolver::default());
    agent_of(config, allow_private, connector, names)
}

fn agent_of(
    config: Config,
    allow_private: Vec<String>,
    connector: impl Connector,
    names: impl Resolver,
) -> Agent {
    let resolver = PublicOnly {
        names,
        allow_private,
    };
    Agent::with_parts(config, connector.chain(AddQuery), resolver)
}

/// Resolves names, and refuses those that lead to an address that is not public.
#[derive(Debug)]
struct PublicOnly<R = DefaultResolver> {
    names: R,
    /// Hosts that may be anywhere: as they are written in the URL, in lower case.
    allow_private: Vec<String>,
}

/// Why a name was refused.
#[derive(Debug)]
pub(super) struct Denied {
    host: String,
    address: IpAddr,
}

impl Denied {
    /// The host is a number in some spelling, and no name. Source: <https://url.spec.whatwg.org/#ends-in-a-number-checker>.
    pub(super) fn is_for_good(&self) -> bool {
        let host = self.host.strip_suffix('.').unwrap_or(&self.host);
        let last = host.rsplit('.').next().unwrap_or_default();
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        host.starts_with('[')
            || !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(is_hex)
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Denied { host, address } = self;
        write!(
            f,
            "host {host:?} is at {address}, which is not public: allow it by name if it is meant"
        )
    }
}

impl std::error::Error for Denied {}

impl<R: Resolver> Resolver for PublicOnly<R> {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let addresses = self.names.resolve(uri, config, timeout)?;
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        if self.allow_private.iter().any(|allowed| allowed == plain) {
            return Ok(addresses);
        }
        match addresses
            .iter()
            .map(|address| address.ip())
            .find(|address| !is_public(*address))
        {
            None => Ok(addresses),
            Some(address) => Err(ureq::Error::Other(Box::new(Denied { host, address }))),
        }
    }
}

#[cfg(test)]
mod tests;
