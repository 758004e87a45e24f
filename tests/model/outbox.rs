//! Deliveries: the model of them, and a receiver that behaves as the model expects.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use stepwell::{Client, DeliveryQuery, DeliveryStatus};

use super::kinds::NAMES;
use super::model::Model;
use super::step::Hook;

/// Waits before each try.
pub(crate) const DELAYS: [i64; 3] = [0, 1000, 3000];

#[derive(Clone, Debug)]
struct Delivery {
    event: String,
    status: &'static str,
    tries: usize,
    next_at: Option<i64>,
    created: i64,
    finished: Option<i64>,
    last_status: Option<u16>,
}

/// The deliveries of a job, in line.
struct Line {
    hook: Hook,
    is_disabled: bool,
    deliveries: Vec<Delivery>,
}

#[derive(Default)]
pub(crate) struct Outbox {
    lines: BTreeMap<i64, Line>,
    /// Events about deliveries since they were taken last.
    pub(crate) events: Vec<(i64, Value)>,
}

impl Outbox {
    pub(crate) fn add(&mut self, job: i64, hook: Hook) {
        let line = Line {
            hook,
            is_disabled: false,
            deliveries: Vec::new(),
        };
        self.lines.insert(job, line);
    }

    /// An event was logged.
    pub(crate) fn tell(&mut self, job: i64, event: &Value, now: i64) {
        let Some(line) = self.lines.get_mut(&job) else {
            return;
        };
        let event = event["event"].as_str().expect("a name").to_owned();
        let is_wanted =
            line.hook != Hook::Gone || ["job:created", "job:deleted"].contains(&&*event);
        if line.is_disabled || !is_wanted {
            return;
        }
        line.deliveries.push(Delivery {
            event,
            status: "pending",
            tries: 0,
            next_at: None,
            created: now,
            finished: None,
            last_status: None,
        });
    }

    /// Sends what is due, each line in its order, until nothing is.
    pub(crate) fn run(&mut self, model: &mut Model, base: &str) {
        let now = model.now;
        for (id, line) in &mut self.lines {
            let (hook, url) = (line.hook, format!("{base}{}", line.hook.path()));
            let is_pending = |delivery: &&mut Delivery| delivery.status == "pending";
            while let Some(delivery) = line.deliveries.iter_mut().find(is_pending) {
                let at = *delivery.next_at.get_or_insert(now);
                if at > now || line.is_disabled {
                    break;
                }
                let status = answer(hook, &delivery.event, delivery.tries);
                delivery.tries += 1;
                delivery.last_status = Some(status);
                if status == 500 && delivery.tries < DELAYS.len() {
                    delivery.next_at = Some(now + DELAYS[delivery.tries]);
                    break;
                }
                line.is_disabled |= status == 410;
                delivery.status = if status == 200 { "delivered" } else { "failed" };
                (delivery.next_at, delivery.finished) = (None, Some(now));
                let Some(job) = model.jobs.get_mut(id) else {
                    continue;
                };
                let is_end =
                    job.status.is_over() && delivery.event == format!("job:{}", job.status.name());
                job.webhook_sent |=
                    status == 200 && is_end && job.finished == Some(delivery.created);
                let told = if status == 200 {
                    "job:webhook:delivered"
                } else {
                    "job:webhook:failed"
                };
                let told = json!({"event": told, "job_id": id, "at": now, "job_type": NAMES[job.kind],
                    "url": url, "status": status, "tries": delivery.tries});
                self.events.push((*id, told));
            }
        }
    }

    /// What the queue is to show of the deliveries of a job, oldest first.
    pub(crate) fn view(&self, job: i64, base: &str) -> Vec<Value> {
        let Some(line) = self.lines.get(&job) else {
            return Vec::new();
        };
        let url = format!("{base}{}", line.hook.path());
        let view = |delivery: &Delivery| {
            json!({"event": delivery.event, "job_id": job, "url": url, "status": delivery.status,
                "tries": delivery.tries, "next_at": delivery.next_at, "created_at": delivery.created,
                "finished_at": delivery.finished, "last_status": delivery.last_status})
        };
        line.deliveries.iter().map(view).collect()
    }

    /// Jobs whose deliveries may have changed.
    pub(crate) fn jobs(&self) -> Vec<i64> {
        self.lines.keys().copied().collect()
    }

    /// Whether a delivery is pending of a job that is gone.
    pub(crate) fn has_orphan(&self, model: &Model) -> bool {
        let is_pending = |line: &Line| {
            line.deliveries
                .iter()
                .any(|delivery| delivery.status == "pending")
        };
        let mut gone = self
            .lines
            .iter()
            .filter(|(id, _)| !model.jobs.contains_key(id));
        gone.any(|(_, line)| is_pending(line) && !line.is_disabled)
    }
}

/// What the receiver says.
fn answer(hook: Hook, event: &str, earlier: usize) -> u16 {
    match hook {
        Hook::Good => 200,
        Hook::Once => [500, 200][earlier.min(1)],
        Hook::First if event == "job:created" => 500,
        Hook::First => 200,
        Hook::Gone => 410,
    }
}

pub(crate) struct Receiver {
    port: u16,
    is_over: Arc<AtomicBool>,
    /// Connections.
    open: Arc<AtomicUsize>,
}

impl Receiver {
    pub(crate) fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let (is_over, open) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (over, accepted) = (is_over.clone(), Arc::<AtomicUsize>::clone(&open));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(stream) = stream {
                    accepted.fetch_add(1, Ordering::SeqCst);
                    let open = accepted.clone();
                    std::thread::spawn(move || {
                        while serve(&stream).is_some() {}
                        drop(stream);
                        open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        });
        Receiver {
            port,
            is_over,
            open,
        }
    }

    /// Remembers no more than `file` does, which is opened next: what was sent for it was cut off before its answer came, or went
    /// out after the copy was made. The process that sent it must have ended.
    pub(crate) fn believe(&self, file: &Path) -> stepwell::Result<()> {
        // Connections are accepted in turn: when this one was, all of the other process have been.
        let last = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        last.shutdown(Shutdown::Write).expect("it is open");
        (&last).read_to_end(&mut Vec::new()).expect("it is closed");
        while self.open.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        let pending = DeliveryQuery::new().status(DeliveryStatus::Pending);
        let page = Client::open(file)?.deliveries(&pending.limit(1000))?;
        assert_eq!(page.next, None, "more than a page");
        let tries = |delivery: stepwell::Delivery| (delivery.webhook_id, delivery.tries as usize);
        *SEEN.lock().expect("nobody panics with it") =
            page.deliveries.into_iter().map(tries).collect();
        Ok(())
    }

    /// Before a history.
    pub(crate) fn forget(&self) {
        SEEN.lock().expect("nobody panics with it").clear();
    }

    pub(crate) fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

/// One request.
fn serve(stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let path = line.split([' ', '?']).nth(1)?.to_owned();
    let (mut length, mut id) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match &*name.to_lowercase() {
            "content-length" => length = value.parse().ok()?,
            "webhook-id" => value.clone_into(&mut id),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body: Value = serde_json::from_slice(&body).ok()?;
    let hooks = [Hook::Good, Hook::Once, Hook::First, Hook::Gone];
    let hook = hooks.into_iter().find(|hook| hook.path() == path)?;
    let status = answer(hook, body["type"].as_str()?, tries_before(&id));
    let text = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
    (&*stream).write_all(text.as_bytes()).ok()
}

/// Deliveries that have been here, and how often.
static SEEN: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

fn tries_before(id: &str) -> usize {
    let mut seen = SEEN.lock().expect("nobody panics with it");
    let count = seen.entry(id.to_owned()).or_default();
    *count += 1;
    *count - 1
}
