//! What is reached and what is not, in every spelling that somebody came up with. Test code.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use ureq::unversioned::transport::ConnectionDetails;

use super::*;
use crate::sync::Mutex;
use crate::time::Timestamp;
use crate::webhook::sender::{Carrier, Post, Sender, Sent, Timeouts};

type List<T> = Arc<Mutex<Vec<T>>>;

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
    "127.0.0.1.",
    "0x7f.1.",
    "0X7F000001",
    "0x07f.0x000.00.0001",
    "127.0x0.0.1",
    "127.0.257",
    "0x7f.0377.65535",
    // names of this machine
    "localhost",
    "LOCALHOST",
    "LocalHost",
    "localhost.",
    "ip6-localhost",
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
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::169.254.169.254]",
    "[2002:a9fe:a9fe::1]",
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
    "[64:ff9b::0.0.0.0]",
    "[64:ff9b::100.64.0.1]",
    "[64:ff9b::192.168.0.1]",
    "[64:ff9b:0:0:0:0:7f00:1]",
    "[64:ff9b:1::8.8.8.8]",
    "[64:ff9b:1::127.0.0.1]",
    "[2001::1]",
    // Teredo of 127.0.0.1, and ISATAP
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
    "[fe80::5efe:127.0.0.1]",
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

/// Tricks with the text of a URL: what is in front of a private address, or hides it.
const TRICKS: &[&str] = &[
    // users, and what looks like one
    "8.8.8.8@127.0.0.1",
    "user:pass@127.0.0.1",
    "127.0.0.1@8.8.8.8",
    "8.8.8.8%40127.0.0.1",
    "@127.0.0.1",
    // bytes in percent notation
    "%31%32%37.0.0.1",
    "127%2e0%2e0%2e1",
    "127.0.0.1%00.example",
    "127.0.0.1%2f.example",
    "localhos%74",
    // digits, dots and brackets of other scripts
    "①②⑦.⓪.⓪.①",
    "１２７.０.０.１",
    "127。0。0。1",
    "ⓛocalhost",
    "١٢٧.٠.٠.١",
    // zones
    "[fe80::1%25lo]",
    "[fe80::1%lo]",
    "[::1%25lo]",
    "[::1%251]",
    // what is no address, or of another length
    "127.0.0.1.1",
    "256.0.0.1",
    "4294967297",
    "0x17f000001",
    "127.0.0.-1",
    "[::1",
    "::1",
    "[127.0.0.1]",
    "[::ffff:127.1]",
    "127.0.0.1\\@8.8.8.8",
    "127.0.0.1\t",
    " 127.0.0.1",
    "127.0.0.1\r\nhost: a.example",
    "",
];

/// Connects to nothing, and remembers which addresses it was to connect to.
#[derive(Clone, Debug, Default)]
struct Recorder(List<SocketAddr>);

impl Connector for Recorder {
    type Out = ();

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<()>, ureq::Error> {
        self.0.lock().extend(details.addrs.iter());
        Ok(None)
    }
}

/// Says where names are. One with several answers gives one after another, and stays with the last.
#[derive(Clone, Debug, Default)]
struct Book(List<(&'static str, Vec<Vec<&'static str>>)>);

impl Resolver for Book {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut book = self.0.lock();
        let host = uri.host().unwrap_or_default();
        let page = book
            .iter_mut()
            .find(|(name, _)| name.eq_ignore_ascii_case(host));
        let (_, answers) = page.ok_or(ureq::Error::HostNotFound)?;
        let answer = match answers.len() {
            1 => answers[0].clone(),
            _ => answers.remove(0),
        };
        let mut addresses = self.empty();
        for ip in answer {
            addresses.push(SocketAddr::new(ip.parse().expect("an address"), 80));
        }
        Ok(addresses)
    }
}

fn timeouts() -> Timeouts {
    let second = Duration::from_secs(1);
    Timeouts {
        resolve: second,
        connect: second,
        total: second,
    }
}

fn hosts(allow_private: &[&str]) -> Vec<String> {
    let hosts = allow_private.iter();
    hosts.map(|host| (*host).to_owned()).collect()
}

fn recording(names: impl Resolver, allow_private: &[&str]) -> (Sender, Recorder) {
    let recorder = Recorder::default();
    let (connector, hosts) = (recorder.clone(), hosts(allow_private));
    let sender = Sender::with(timeouts(), false, |config| {
        agent_of(config, hosts, connector, names)
    });
    (sender, recorder)
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

/// Whether it ended before there was an address to connect to.
fn problem(sent: Sent, host: &str) -> String {
    match sent {
        Sent::Refused(problem) | Sent::Failed(problem) => {
            let is_known = [
                "which is not public",
                "not known",
                "lookup",
                "not resolved in time",
                "webhook URL",
                "invalid",
            ];
            let is_known = is_known.iter().any(|part| problem.contains(part));
            assert!(is_known, "{host:?}: {problem}");
            problem
        }
        Sent::Answered { .. } | Sent::Cut => panic!("{host:?}: {sent:?}"),
    }
}

#[test]
fn no_spelling_leads_to_a_connection_with_what_is_not_public() {
    assert!(SPELLINGS.len() >= 100, "{}", SPELLINGS.len());
    // Whoever came through would also be seen here, on every address of this machine.
    let door = TcpListener::bind("[::]:0").expect("a port");
    door.set_nonblocking(true).expect("a socket");
    let port = door.local_addr().expect("bound").port();
    let (recorded, recorder) = recording(DefaultResolver::default(), &[]);
    let real = Sender::new(timeouts(), Vec::new(), false);
    for host in SPELLINGS.iter().chain(TRICKS) {
        for sender in [&recorded, &real] {
            let url = format!("http://{host}:{port}/?key=1");
            let problem = problem(send(sender, &url), host);
            assert!(!problem.contains("key=1"), "{problem}");
            assert!(!problem.contains("pass"), "{problem}");
        }
    }
    assert_eq!(*recorder.0.lock(), [], "no connection was to be made");
    assert!(door.accept().is_err(), "nobody came");
}

/// That the recorder sees what is to be connected to.
#[test]
fn public_addresses_are_connected_to() {
    let (sender, recorder) = recording(DefaultResolver::default(), &["127.0.0.1"]);
    let urls = [
        "http://8.8.8.8/",
        "http://134744072/",
        "https://[2606:4700::1111]:8443/",
        "http://[64:ff9b::8.8.8.8]/",
        "http://8.8.8.8#@127.0.0.2/",
        "http://127.0.0.1:99/",
    ];
    for url in urls {
        assert!(matches!(send(&sender, url), Sent::Failed(_)), "{url}");
    }
    let seen: Vec<_> = recorder.0.lock().iter().map(ToString::to_string).collect();
    assert_eq!(
        seen,
        [
            "8.8.8.8:80",
            "8.8.8.8:80",
            "[2606:4700::1111]:8443",
            "[64:ff9b::808:808]:80",
            "8.8.8.8:80",
            "127.0.0.1:99"
        ]
    );
}

#[test]
fn a_name_is_judged_by_every_address_that_it_leads_to() {
    let private = [
        ("v4.example", vec!["10.1.2.3"]),
        ("v6.example", vec!["::1"]),
        ("mapped.example", vec!["::ffff:127.0.0.1"]),
        ("nat64.example", vec!["64:ff9b::808:808", "64:ff9b::7f00:1"]),
        ("local64.example", vec!["64:ff9b:1::808:808"]),
        ("metadata.example", vec!["169.254.169.254"]),
        (
            "last.example",
            vec!["8.8.8.8", "2606:4700::1111", "192.168.0.1"],
        ),
        ("first.example", vec!["fd00::1", "8.8.8.8"]),
    ];
    let pages = private
        .iter()
        .map(|(name, page)| (*name, vec![page.clone()]));
    let mut pages: Vec<_> = pages.collect();
    pages.push(("public.example", vec![vec!["8.8.8.8", "2606:4700::1111"]]));
    let book = Book(Arc::new(Mutex::new(pages)));
    let (sender, recorder) = recording(book, &["v6.example"]);
    for (name, _) in &private {
        if *name == "v6.example" {
            continue;
        }
        let sent = send(&sender, &format!("http://{name}/"));
        // It may lead elsewhere the next time, so it is tried again.
        assert!(matches!(&sent, Sent::Failed(_)), "{name}: {sent:?}");
        assert!(problem(sent, name).contains("which is not public"));
    }
    assert_eq!(*recorder.0.lock(), []);
    send(&sender, "http://public.example/");
    send(&sender, "http://V6.example/");
    assert_eq!(
        recorder.0.lock().len(),
        3,
        "both of one, and what is allowed"
    );
}

/// The bug: in a network with IPv6 alone, where the resolver makes an IPv6 address of the IPv4 one of a receiver (DNS64), no
/// receiver without an IPv6 address of its own could be reached.
#[test]
fn a_public_ipv4_address_is_reached_through_the_gateway_of_an_ipv6_network() {
    let page = vec![vec!["64:ff9b::808:808"]];
    let book = Book(Arc::new(Mutex::new(vec![("v4only.example", page)])));
    let (sender, recorder) = recording(book, &[]);
    send(&sender, "http://v4only.example/");
    let seen: Vec<_> = recorder.0.lock().iter().map(ToString::to_string).collect();
    assert_eq!(seen, ["[64:ff9b::808:808]:80"]);
}

/// A name that is public when somebody looks and private a moment later: each look-up is judged, and the connection goes to
/// what was judged, without another look.
#[test]
fn a_name_that_changes_is_judged_each_time() {
    let answers = vec![
        vec!["8.8.8.8"],
        vec!["127.0.0.1"],
        vec!["8.8.4.4"],
        vec!["10.0.0.1"],
    ];
    let book = Book(Arc::new(Mutex::new(vec![("rebind.example", answers)])));
    let (sender, recorder) = recording(book.clone(), &[]);
    let sent = [(); 4].map(|()| send(&sender, "http://rebind.example/"));
    assert_eq!(book.0.lock()[0].1.len(), 1, "each try has looked once");
    assert_eq!(sent[0], sent[2]);
    for sent in [&sent[1], &sent[3]] {
        assert!(
            matches!(sent, Sent::Failed(problem) if problem.contains("\"rebind.example\" is at")),
            "{sent:?}"
        );
    }
    let seen: Vec<_> = recorder.0.lock().iter().map(SocketAddr::ip).collect();
    assert_eq!(
        seen,
        ["8.8.8.8", "8.8.4.4"].map(|ip| ip.parse::<IpAddr>().expect("one"))
    );
}

#[test]
fn a_number_that_is_private_is_given_up_and_a_name_is_not() {
    let is_for_good = |host: &str| {
        Denied {
            host: host.to_owned(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
        .is_for_good()
    };
    for number in [
        "127.0.0.1",
        "0x7f.1",
        "2130706433",
        "127.0.0.1.",
        "[::1]",
        "0x",
    ] {
        assert!(is_for_good(number), "{number}");
    }
    for name in ["localhost", "a.example", "127.0.0.1.example", "0xg", ""] {
        assert!(!is_for_good(name), "{name}");
    }
}

#[test]
fn what_is_allowed_by_name_is_reached_by_that_name_only() {
    let door = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = door.local_addr().expect("bound").port();
    let sender = Sender::new(timeouts(), hosts(&["localhost"]), false);
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
