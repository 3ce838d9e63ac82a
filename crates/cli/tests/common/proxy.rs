//! A TCP proxy between a worker and its coordinator: bytes may change on the way, wait, or find their connection gone.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What happens to bytes of one direction of one connection.
pub type Alter = Box<dyn FnMut(&mut [u8]) + Send>;

/// A proxy, as long as the test runs.
pub struct Proxy {
    pub address: String,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    /// Nothing is passed on; connections stay.
    held: AtomicBool,
    /// How often all connections were ended.
    cuts: AtomicU64,
}

impl Proxy {
    /// A proxy to `target`. `alter` is asked once for each direction of each connection, with numbers from 0: even ones go to
    /// the target.
    pub fn start(target: &str, alter: impl Fn(u64) -> Alter + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let control = Arc::<Control>::default();
        let (target, theirs) = (target.to_owned(), control.clone());
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().flatten().enumerate() {
                let Ok(server) = TcpStream::connect(&target) else { continue };
                let (client_again, server_again) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                for (from, to, way) in [(client, server, 0), (server_again, client_again, 1)] {
                    let (control, alter) = (theirs.clone(), alter(2 * number as u64 + way));
                    std::thread::spawn(move || pass_on(from, to, alter, &control));
                }
            }
        });
        Self { address, control }
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.control.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// Holds all bytes back, or no more.
    pub fn hold(&self, held: bool) {
        self.control.held.store(held, Ordering::SeqCst);
    }
}

/// Copies bytes until either side ends.
fn pass_on(mut from: TcpStream, mut to: TcpStream, mut alter: Alter, control: &Control) {
    let cuts = control.cuts.load(Ordering::SeqCst);
    let mut buffer = [0; 4096];
    from.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    while control.cuts.load(Ordering::SeqCst) == cuts {
        if control.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        match from.read(&mut buffer) {
            Ok(count @ 1..) => {
                alter(&mut buffer[..count]);
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => break,
        }
    }
    // The other direction ends with this one.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
