//! The program itself, as a process that serves on a free port of this machine.

use crate::http::Answer;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

const START_TIME_MAX: Duration = Duration::from_secs(120);
/// A read that takes longer has hung.
const READ_TIME_MAX: Duration = Duration::from_secs(60);

/// `monsoon` as cargo built it beside this test.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let folder = test.ancestors().nth(2).expect("target/debug/deps/TEST");
    folder.join("monsoon")
}

/// A process that serves; it ends when this value is dropped.
pub struct Program {
    child: Child,
    port: u16,
}

impl Program {
    /// `command` is `serve` with its flags, without a port. Returns once /health answers 200.
    /// Panics when the process ends before.
    pub fn start(command: &mut Command) -> Program {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        command.args(["--port", &port.to_string()]);
        // Nothing in the home of whoever runs the tests.
        if !command.get_args().any(|arg| arg == "--jobs-dir") {
            command.args(["--jobs-dir", "off"]);
        }
        let mut program = Program { child: command.spawn().expect("the binary starts"), port };
        let started = Instant::now();
        while program.get("/health") != Some(200) {
            let ended = program.child.try_wait().expect("a child");
            assert!(ended.is_none(), "{command:?} ended: {ended:?}");
            assert!(started.elapsed() < START_TIME_MAX, "{command:?}: no answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        program
    }

    /// The status of an answer, if there is one.
    pub fn get(&self, path: &str) -> Option<u16> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        Some(Answer::read(&mut stream).status)
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        stream.set_read_timeout(Some(READ_TIME_MAX)).expect("a socket");
        stream
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// `signal` as `kill` takes it.
    pub fn signal(&self, signal: &str) {
        let kill = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(kill.expect("kill is there").success());
    }

    /// How it ended. Panics when it has not within `time_max`.
    pub fn wait(&mut self, time_max: Duration) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(since.elapsed() < time_max, "no end within {time_max:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
