//! One request over a socket of its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// An answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// `GET path` at `address`, with further header lines.
pub fn get_with(address: &str, path: &str, headers: &[&str]) -> Answer {
    request(address, &format!("GET {path} HTTP/1.1"), headers, "")
}

/// `GET path` as a browser would ask.
pub fn get(address: &str, path: &str) -> Answer {
    get_with(address, path, &[&format!("host: {address}")])
}

/// A request with these lines and this body.
pub fn request(address: &str, first: &str, headers: &[&str], body: &str) -> Answer {
    let mut socket = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    let mut text = format!("{first}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for header in headers {
        text.push_str(&format!("{header}\r\n"));
    }
    socket.write_all(format!("{text}\r\n{body}").as_bytes()).expect("it takes the request");
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    // A refusal may come with a reset after it, and not everybody closes a connection that has answered.
    while !is_whole(&bytes) {
        match socket.read(&mut buffer) {
            Ok(count @ 1..) => bytes.extend_from_slice(&buffer[..count]),
            Ok(0) | Err(_) => break,
        }
    }
    parsed(&bytes)
}

/// Whether all the bytes that the answer promises have come.
fn is_whole(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|length| bytes.len() >= end + 4 + length)
}

fn parsed(bytes: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if is_chunked { unchunked(body) } else { body.to_owned() };
    Answer { status, head: head.to_owned(), body }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size @ 1..) = usize::from_str_radix(size.trim(), 16) else {
            break;
        };
        whole.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    whole
}
