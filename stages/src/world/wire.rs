//! For tests: a network between a process and its store that can be cut.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pipeline::within;

/// A port that leads to that of a store, until it is cut: then what is sent arrives nowhere, and nobody is told.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) port: u16,
    cut: Arc<AtomicBool>,
}

impl Wire {
    pub(super) fn to(store: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, cut) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let is_cut = Arc::clone(&cut);
        on_its_own(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(("127.0.0.1", store)).unwrap());
                let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
                for (from, to) in [(near, far), back] {
                    let is_cut = Arc::clone(&is_cut);
                    on_its_own(move || carry(from, to, &is_cut));
                }
            }
        });
        Self { port, cut }
    }

    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, is_cut: &AtomicBool) {
    let mut bytes = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        if !is_cut.load(Ordering::SeqCst) && to.write_all(&bytes[..len]).is_err() {
            break;
        }
    }
}

/// On a thread that ends with the tests.
fn on_its_own(work: impl FnOnce() + Send + 'static) {
    let _ = within(Duration::ZERO, "wire", work).expect("a thread can be had");
}
