//! What the fuzzer does with this folder: the answers of receivers. L3; for `cfg(fuzzing)` and tests only.
//!
//! What it would catch: a panic or a hang on an answer, one that is kept whole however long it is, a wait that nobody can
//! reckon with.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

use crate::config::ANSWER_BYTES_MAX;
use crate::sync::{Mutex, Sender as Sends, spawn, unbounded};
use crate::time::Timestamp;
use crate::webhook::schedule::Schedule;
use crate::webhook::sender::{Carrier, Post, Sender, Sent, Timeouts};

/// An answer that has not come by then is none.
const WAIT: Duration = Duration::from_millis(500);

/// A receiver that answers what it is told to, and closes.
struct Receiver {
    url: String,
    answers: Sends<Vec<u8>>,
    sender: Sender,
}

impl Receiver {
    fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("it is bound");
        let (answers, answered) = unbounded::<Vec<u8>>();
        let run = move || {
            while let Ok(answer) = answered.recv() {
                if let Ok((connection, _)) = listener.accept() {
                    reply(connection, &answer);
                }
            }
        };
        spawn("fuzz-receiver", run).expect("a thread");
        let timeouts = Timeouts {
            resolve: WAIT,
            connect: WAIT,
            total: WAIT,
        };
        Receiver {
            url: format!("http://{addr}/hook"),
            answers,
            sender: Sender::new(timeouts, vec!["127.0.0.1".to_owned()], false),
        }
    }
}

/// Reads a request to its end, which is that of its body, `{}`.
fn reply(mut connection: TcpStream, answer: &[u8]) {
    let (mut request, mut piece) = (Vec::new(), [0; 2048]);
    while !request.ends_with(b"{}") {
        match connection.read(&mut piece) {
            Ok(count) if count > 0 => request.extend_from_slice(&piece[..count]),
            _ => return,
        }
    }
    // A sender that has heard enough may have gone.
    connection.write_all(answer).ok();
}

pub(crate) fn answer(bytes: &[u8]) {
    static RECEIVER: LazyLock<Mutex<Receiver>> = LazyLock::new(|| Mutex::new(Receiver::start()));
    let receiver = RECEIVER.lock();
    receiver.answers.send(bytes.to_vec()).expect("it receives");
    let sent = receiver.sender.send(&Post {
        url: &receiver.url,
        webhook_id: "msg_1",
        secrets: &[],
        body: "{}",
        at: Timestamp::from_millis(1_445_412_480_000),
    });
    match sent {
        Sent::Answered {
            status,
            answer,
            retry_after,
        } => {
            assert!((100..1000).contains(&status), "{status}");
            assert!(
                answer.len() <= ANSWER_BYTES_MAX,
                "{} bytes are kept",
                answer.len()
            );
            let delay = Schedule::default().next_delay(1, retry_after, 7);
            let delay = delay.expect("a try is left");
            let longest = Duration::from_secs(86_400);
            assert!(
                delay >= Duration::from_secs(1) && delay <= longest,
                "{delay:?}"
            );
        }
        Sent::Failed(problem) => assert!(problem.len() < 1000, "{problem}"),
        other @ (Sent::Refused(_) | Sent::Cut) => panic!("{other:?}"),
    }
}
