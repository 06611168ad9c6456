//! The output of a response, item by item, with the events that tell of it.

use super::super::wire::random_hex;
use crate::text::Part;
use serde_json::{Value, json};

/// Collects items; events are for those who stream.
#[derive(Debug, Default)]
pub struct Writer {
    items: Vec<Value>,
    open: Option<Open>,
    num_events: u64,
}

/// The item being written.
#[derive(Debug)]
struct Open {
    kind: Kind,
    id: String,
    /// Of a call: its own id and its name.
    call: Option<(String, String)>,
    /// Text, or arguments.
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    Call,
}

impl Kind {
    /// The name of its text in events; that of a part's type too, but for calls.
    fn text_name(self) -> &'static str {
        match self {
            Kind::Reasoning => "reasoning_text",
            Kind::Message => "output_text",
            Kind::Call => "function_call_arguments",
        }
    }
}

impl Open {
    fn new(kind: Kind, prefix: &str) -> Open {
        Open { kind, id: format!("{prefix}_{}", random_hex()), call: None, text: String::new() }
    }

    fn part(&self) -> Value {
        match self.kind {
            Kind::Reasoning => json!({"type": "reasoning_text", "text": self.text}),
            Kind::Message | Kind::Call => {
                json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []})
            }
        }
    }

    fn item(&self, status: &str, content: Vec<Value>) -> Value {
        let (id, status) = (&self.id, status);
        match (self.kind, &self.call) {
            (Kind::Reasoning, _) => json!({
                "type": "reasoning", "id": id, "status": status, "summary": [], "content": content,
            }),
            (Kind::Call, Some((call_id, name))) => json!({
                "type": "function_call", "id": id, "status": status, "call_id": call_id,
                "name": name, "arguments": self.text,
            }),
            (Kind::Message | Kind::Call, _) => json!({
                "type": "message", "id": id, "status": status, "role": "assistant",
                "content": content,
            }),
        }
    }
}

impl Writer {
    /// An event with its number.
    pub fn event(&mut self, kind: &str, mut fields: Value) -> Value {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.num_events.into();
        self.num_events += 1;
        fields
    }

    pub fn add(&mut self, part: Part) -> Vec<Value> {
        let mut events = Vec::new();
        let (kind, text) = match part {
            Part::Reasoning(text) => (Kind::Reasoning, text),
            Part::Content(text) => (Kind::Message, text),
            Part::Arguments { text, .. } => (Kind::Call, text),
            Part::Call { name, .. } => {
                self.close("completed", &mut events);
                let call = Some((format!("call_{}", random_hex()), name));
                self.begin(Open { call, ..Open::new(Kind::Call, "fc") }, &mut events);
                return events;
            }
        };
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.close("completed", &mut events);
            let prefix = if kind == Kind::Reasoning { "rs" } else { "msg" };
            self.begin(Open::new(kind, prefix), &mut events);
        }
        let index = self.items.len();
        let open = self.open.as_mut().expect("begun above");
        open.text.push_str(&text);
        let mut fields = json!({"item_id": open.id, "output_index": index, "delta": text});
        if kind != Kind::Call {
            fields["content_index"] = 0.into();
        }
        if kind == Kind::Message {
            fields["logprobs"] = json!([]);
        }
        events.push(self.event(&format!("response.{}.delta", kind.text_name()), fields));
        events
    }

    /// The end of the output. `status`: of what is still open.
    pub fn end(&mut self, status: &str) -> Vec<Value> {
        let mut events = Vec::new();
        self.close(status, &mut events);
        events
    }

    /// Events made so far, which is the number of the next one.
    pub fn num_events(&self) -> u64 {
        self.num_events
    }

    /// The items that are complete.
    pub fn items(&self) -> &[Value] {
        &self.items
    }

    fn begin(&mut self, open: Open, events: &mut Vec<Value>) {
        let index = self.items.len();
        let item = open.item("in_progress", Vec::new());
        let added = json!({"output_index": index, "item": item});
        events.push(self.event("response.output_item.added", added));
        if open.kind != Kind::Call {
            let added = json!({
                "item_id": open.id, "output_index": index, "content_index": 0, "part": open.part(),
            });
            events.push(self.event("response.content_part.added", added));
        }
        self.open = Some(open);
    }

    fn close(&mut self, status: &str, events: &mut Vec<Value>) {
        let Some(open) = self.open.take() else { return };
        let index = self.items.len();
        let done = format!("response.{}.done", open.kind.text_name());
        let mut fields = json!({"item_id": open.id, "output_index": index});
        if open.kind == Kind::Call {
            fields["arguments"] = open.text.as_str().into();
            events.push(self.event(&done, fields));
        } else {
            fields["content_index"] = 0.into();
            let mut part_fields = fields.clone();
            fields["text"] = open.text.as_str().into();
            part_fields["part"] = open.part();
            events.push(self.event(&done, fields));
            events.push(self.event("response.content_part.done", part_fields));
        }
        let content = if open.kind == Kind::Call { Vec::new() } else { vec![open.part()] };
        let item = open.item(status, content);
        let fields = json!({"output_index": index, "item": item});
        events.push(self.event("response.output_item.done", fields));
        self.items.push(item);
    }
}
