//! `monsoon chat`: a conversation with a running server. In a terminal it prompts and Ctrl-C stops
//! an answer; from a pipe it takes one question per line and prints one answer after the other.

use super::CommandError;
use super::http_client::{ClientError, Target};
use crate::config::ChatConfig;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Read, Write};
use tokio::sync::mpsc;

/// Longest line typed or piped in.
pub const LINE_BYTES_MAX: u64 = 1 << 20;
/// Lines read ahead from a pipe.
const LINES_WAITING_MAX: usize = 16;

const HELP: &str = "/reset forgets the conversation, /exit ends, Ctrl-C stops an answer";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Terminal,
    Pipe,
}

/// Ends with the input, /exit, or Ctrl-C at the prompt.
///
/// Errors: no server there; from a pipe, the first failed question.
pub async fn run(config: ChatConfig) -> Result<(), CommandError> {
    let target = Target::new(&config.url, config.api_key.clone())?;
    let model = match &config.model {
        Some(model) => model.clone(),
        None => target.first_model().await?,
    };
    let input = if std::io::stdin().is_terminal() { Input::Terminal } else { Input::Pipe };
    if input == Input::Terminal {
        println!("{model} at {}. {HELP}", config.url);
    }
    let mut lines = read_lines();
    let mut messages = first_messages(&config);
    loop {
        let Some(line) = next_line(&mut lines, input).await else {
            return Ok(());
        };
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" => return Ok(()),
            "/help" => println!("{HELP}"),
            "/reset" => {
                messages = first_messages(&config);
                println!("(a new conversation)");
            }
            question => {
                messages.push(json!({"role": "user", "content": question}));
                match answer(&target, &config, &model, &messages).await {
                    Ok(text) => messages.push(json!({"role": "assistant", "content": text})),
                    Err(error) if input == Input::Pipe => return Err(error.into()),
                    Err(error) => {
                        messages.pop();
                        eprintln!("{error}");
                    }
                }
            }
        }
    }
}

fn first_messages(config: &ChatConfig) -> Vec<Value> {
    config.system.iter().map(|text| json!({"role": "system", "content": text})).collect()
}

/// `None` at the end of the input or by Ctrl-C.
async fn next_line(lines: &mut mpsc::Receiver<String>, input: Input) -> Option<String> {
    if input == Input::Terminal {
        print!("> ");
        let _ = std::io::stdout().flush();
    }
    tokio::select! {
        line = lines.recv() => line,
        _ = tokio::signal::ctrl_c() => {
            println!();
            None
        }
    }
}

/// Prints the answer as it comes and returns it. Ctrl-C ends it early; what came is kept.
async fn answer(
    target: &Target,
    config: &ChatConfig,
    model: &str,
    messages: &[Value],
) -> Result<String, ClientError> {
    let mut body = json!({"model": model, "messages": messages, "stream": true});
    if let Some(max_tokens) = config.max_tokens {
        body["max_tokens"] = json!(max_tokens);
    }
    if let Some(temperature) = config.temperature {
        body["temperature"] = json!(temperature);
    }
    let mut text = String::new();
    let streaming = async {
        let mut connection = target.connect().await?;
        let mut events = connection.post_stream("/v1/chat/completions", &body).await?;
        while let Some(event) = events.next().await? {
            let piece = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            text.push_str(piece);
            print!("{piece}");
            let _ = std::io::stdout().flush();
        }
        Ok(())
    };
    let result = tokio::select! {
        result = streaming => result,
        // Dropping the connection makes the server stop too.
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    println!();
    result.map(|()| text)
}

/// Standard input cannot be read asynchronously everywhere, so a thread of its own reads it.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(LINES_WAITING_MAX);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = String::new();
            match input.by_ref().take(LINE_BYTES_MAX).read_line(&mut line) {
                Ok(0) => return,
                Ok(_) if line.len() as u64 == LINE_BYTES_MAX => {
                    eprintln!("a line of more than {LINE_BYTES_MAX} bytes is too long");
                    return;
                }
                Ok(_) => {}
                Err(error) => {
                    eprintln!("cannot read the input: {error}");
                    return;
                }
            }
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
