//! An HTTP server on this machine that stands in for another. It answers as it is told, and writes
//! down what was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header; names are in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }
}

pub enum Reply {
    Answer {
        status: String,
        headers: String,
        body: Vec<u8>,
    },
    /// These bytes, and the connection is closed.
    Broken(Vec<u8>),
    /// These bytes, and then nothing: the connection stays open until the other side ends it.
    Held(Vec<u8>),
}

impl Reply {
    pub fn new(status: &str, body: impl AsRef<[u8]>) -> Self {
        Self::Answer { status: status.into(), headers: String::new(), body: body.as_ref().into() }
    }

    pub fn json(body: &serde_json::Value) -> Self {
        Self::new("200 OK", body.to_string()).with("Content-Type", "application/json")
    }

    /// A file of the hub, or the part of it that is asked for.
    pub fn hub_file(request: &Request, bytes: &[u8], tag: &str, commit: &str) -> Self {
        let range = request.header("range").unwrap_or_default().trim_start_matches("bytes=");
        let (from, to) = range.split_once('-').unwrap_or(("0", ""));
        let from: usize = from.parse().unwrap_or(0);
        let to = to.parse::<usize>().map_or(bytes.len(), |t| t + 1).min(bytes.len());
        let size = bytes.len();
        Self::new("206 Partial Content", &bytes[from..to])
            .with("Content-Range", &format!("bytes {from}-{}/{size}", to - 1))
            .with("ETag", &format!("\"{tag}-{size}\""))
            .with("X-Repo-Commit", commit)
    }

    /// The same answer with one more header.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push_str(&format!("{name}: {value}\r\n"));
        }
        self
    }
}

pub struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (requests.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || serve(stream, &log, answer.as_ref()));
            }
        });
        Self { url, requests }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("log").clone()
    }
}

/// Answers a connection's requests until either side ends it.
fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) {
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    while let Some(request) = read(&mut reader) {
        log.lock().expect("log").push(request.clone());
        let sent = match answer(&request) {
            Reply::Answer { status, headers, body } => {
                let head =
                    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
                stream.write_all(&[head.as_bytes(), &body].concat())
            }
            Reply::Broken(bytes) => {
                stream
                    .write_all(&bytes)
                    .and_then(|()| stream.shutdown(Shutdown::Write))
                    .expect("sends");
                return;
            }
            Reply::Held(bytes) => {
                stream.write_all(&bytes).expect("sends");
                reader.read_to_end(&mut Vec::new()).ok();
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let path = lines.first()?.split(' ').nth(1)?.to_owned();
    let header = |line: &String| {
        line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()))
    };
    let mut request =
        Request { path, headers: lines[1..].iter().filter_map(header).collect(), body: Vec::new() };
    let length = request.header("content-length").map_or(0, |n| n.parse().expect("a length"));
    request.body.resize(length, 0);
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}
