//! Which addresses a webhook may reach, decided for the very address that is connected to. L3. The only file that names what
//! ureq keeps out of its promise of stability.
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
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

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
/// was compatible with IPv4; what carries an IPv4 address is denied whatever that is.
const DENIED_V6: [(Ipv6Addr, u32); 15] = [
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 96),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    (Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
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

/// Whether anybody on the internet may be at `address`.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let is_in = |(net, prefix): &(Ipv4Addr, u32)| {
                (address.to_bits() ^ net.to_bits()).checked_shr(32 - prefix) == Some(0)
            };
            !DENIED_V4.iter().any(is_in)
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
    let names = DefaultResolver::default();
    let resolver = PublicOnly {
        names,
        allow_private,
    };
    Agent::with_parts(config, DefaultConnector::default(), resolver)
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
mod tests {
    use std::net::{SocketAddr, TcpListener};
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::time::Timestamp;
    use crate::webhook::sender::{Post, Sender, Sent, Timeouts};

    /// Hosts as somebody might write them to reach what is not public. The last part of each is a port.
    const SPELLINGS: &[&str] = &[
        // 127.0.0.1 in every base, with parts left out
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0x7f.1",
        "017700000001",
        "0177.0.0.1",
        "0177.1",
        "0x7F.0x0.0x0.0x1",
        "127.0.0.01",
        "127.000.000.001",
        "0x7f.0.1",
        "127.255.255.254",
        "127.0.0.2",
        // names of this machine
        "localhost",
        "LOCALHOST",
        "LocalHost",
        "localhost.",
        // nobody, which is this machine
        "0.0.0.0",
        "0",
        "0x0",
        "00",
        "0.0",
        "0.0.0.1",
        // private networks
        "10.0.0.1",
        "10.255.255.255",
        "167772161",
        "0xa000001",
        "012.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "2886729729",
        "192.168.0.1",
        "192.168.1.1",
        "3232235777",
        "0xc0a80101",
        "0300.0250.1.1",
        "100.64.0.1",
        "100.127.255.255",
        // where clouds tell secrets
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "169.254.43518",
        // documentation, benchmarks, multicast, reserved, broadcast
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "4294967295",
        // IPv6
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "[::ffff:10.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[::ffff:8.8.8.8]",
        "[::127.0.0.1]",
        "[::7f00:1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b::a00:1]",
        "[64:ff9b:1::1]",
        "[2001::1]",
        "[2001:db8::1]",
        "[2002:7f00:1::]",
        "[fc00::1]",
        "[fd12:3456:789a::1]",
        "[fe80::1]",
        "[febf::1]",
        "[fec0::1]",
        "[ff02::1]",
        "[100::1]",
        "[3fff::1]",
        "[5f00::1]",
        "[2001:10::1]",
        "[2001:20::1]",
    ];

    fn sender(allow_private: &[&str]) -> Sender {
        let second = Duration::from_secs(1);
        let timeouts = Timeouts {
            resolve: second,
            connect: second,
            total: second,
        };
        let hosts = allow_private
            .iter()
            .map(|host| (*host).to_owned())
            .collect();
        Sender::new(timeouts, hosts, false)
    }

    fn send(sender: &Sender, url: &str) -> Sent {
        let at = Timestamp::from_millis(0);
        sender.send(&Post {
            url,
            webhook_id: "msg_1",
            secrets: &[],
            body: "{}",
            at,
        })
    }

    #[test]
    fn no_spelling_reaches_what_is_not_public() {
        assert!(SPELLINGS.len() >= 80, "{}", SPELLINGS.len());
        // Whoever came through would be seen here, on every address of this machine.
        let door = TcpListener::bind("[::]:0").expect("a port");
        door.set_nonblocking(true).expect("a socket");
        let port = door.local_addr().expect("bound").port();
        let sender = sender(&[]);
        for host in SPELLINGS {
            let sent = send(&sender, &format!("http://{host}:{port}/?key=1"));
            match &sent {
                Sent::Refused(problem) => assert!(!problem.contains("key=1"), "{problem}"),
                // The system itself does not know what this is meant to be.
                Sent::Failed(problem) => {
                    let unknown = problem.contains("name is not known")
                        || problem.contains("lookup")
                        || problem.contains("was not resolved in time");
                    assert!(unknown, "{host}: {problem}");
                }
                Sent::Answered { .. } | Sent::Cut => panic!("{host}: {sent:?}"),
            }
        }
        assert!(door.accept().is_err(), "nobody came");
    }

    #[test]
    fn what_is_allowed_by_name_is_reached_by_that_name_only() {
        let door = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = door.local_addr().expect("bound").port();
        let sender = sender(&["localhost"]);
        assert!(matches!(
            send(&sender, &format!("http://127.0.0.1:{port}/")),
            Sent::Refused(_)
        ));
        door.set_nonblocking(true).expect("a socket");
        assert!(door.accept().is_err());
        // It listens and does not answer: the connection is made.
        assert!(matches!(
            send(&sender, &format!("http://localhost:{port}/")),
            Sent::Failed(_)
        ));
        assert!(door.accept().is_ok());
    }

    /// A name that is public when it is looked at and private when it is used.
    #[derive(Debug)]
    struct Rebinding(Mutex<Vec<SocketAddr>>);

    impl Resolver for Rebinding {
        fn resolve(
            &self,
            _: &Uri,
            _: &Config,
            _: NextTimeout,
        ) -> Result<ResolvedSocketAddrs, ureq::Error> {
            let mut answers = self.0.lock().expect("not poisoned");
            let mut addresses = self.empty();
            addresses.push(answers.remove(0));
            Ok(addresses)
        }
    }

    #[test]
    fn each_answer_of_a_resolver_is_judged_by_itself() {
        let answers = ["8.8.8.8:80", "127.0.0.1:80"].map(|text| text.parse().expect("an address"));
        let guard = PublicOnly {
            names: Rebinding(Mutex::new(answers.to_vec())),
            allow_private: Vec::new(),
        };
        let uri: Uri = "http://rebind.example/".parse().expect("a URL");
        let resolve = || {
            let timeout = NextTimeout::default();
            guard.resolve(&uri, &Config::default(), timeout)
        };
        assert_eq!(resolve().expect("public")[0].ip().to_string(), "8.8.8.8");
        let error = resolve().expect_err("private").to_string();
        assert!(
            error.contains("\"rebind.example\" is at 127.0.0.1, which is not public"),
            "{error}"
        );
    }

    #[test]
    fn public_addresses_are_public() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:4860::8888",
            "2a00::1",
            "64:ff9a::1",
        ] {
            assert!(is_public(address.parse().expect("an address")), "{address}");
        }
    }
}
