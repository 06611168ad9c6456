//! A server whose model says what its prompt tells it to, for clients that must get a certain
//! answer, such as a call of a tool: everything but the model is the real thing.
//!
//!     script_server --host 127.0.0.1 --port 8000
//!
//! It runs until it is killed. See `ScriptRunner` for what a prompt can tell.

use tests::http::{Setup, TestServer};

/// Agents send long prompts.
const MAX_MODEL_LEN: usize = 16_000;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let port = args.iter().position(|arg| arg == "--port").and_then(|at| args.get(at + 1));
    let port = port.and_then(|port| port.parse().ok()).expect("--port PORT");
    let setup = Setup { port, max_model_len: MAX_MODEL_LEN, ..Setup::default() };
    let server = TestServer::start(setup);
    println!("serving on http://{}", server.address);
    loop {
        std::thread::park();
    }
}
