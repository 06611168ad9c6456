//! Fixtures of answers with calls; each is cut at every place.

use super::*;
use crate::text::reasoning::ReasoningStart;
use crate::text::testing::every_cut;
use crate::text::{AnswerFormat, AnswerParser, AnswerTools};
use serde_json::json;

/// An answer put together again.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    reasoning: String,
    content: String,
    /// (name, arguments)
    calls: Vec<(String, String)>,
}

fn tools() -> Arc<Vec<Tool>> {
    let parameters = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "hourly": {"type": "boolean"},
            "place": {"type": "object"},
        },
    });
    Arc::new(vec![Tool { name: "get_weather".into(), parameters }])
}

fn format(format: ToolFormat, calls_max: usize) -> AnswerFormat {
    AnswerFormat {
        reasoning: Some(ReasoningStart::Outside),
        tools: Some(AnswerTools { format, tools: tools(), calls_max }),
    }
}

fn parse(format: &AnswerFormat, pieces: &[&str]) -> Answer {
    let mut parser = AnswerParser::new(format);
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    parts.extend(parser.finish());
    let mut answer = Answer::default();
    for part in parts {
        match part {
            Part::Reasoning(text) => answer.reasoning.push_str(&text),
            Part::Content(text) => answer.content.push_str(&text),
            Part::Call { index, name } => {
                assert_eq!(index, answer.calls.len(), "calls come in order");
                answer.calls.push((name, String::new()));
            }
            Part::Arguments { index, text } => {
                assert_eq!(index + 1, answer.calls.len(), "arguments follow their call");
                answer.calls[index].1.push_str(&text);
            }
        }
    }
    assert_eq!(parser.num_calls(), answer.calls.len());
    answer
}

#[track_caller]
fn check(of: ToolFormat, text: &str, content: &str, calls: &[(&str, &str)]) {
    let calls = calls.iter().map(|&(name, arguments)| (name.to_owned(), arguments.to_owned()));
    let expected =
        Answer { reasoning: String::new(), content: content.to_owned(), calls: calls.collect() };
    let format = format(of, usize::MAX);
    every_cut(text, |pieces| assert_eq!(parse(&format, pieces), expected, "{pieces:?}"));
}

fn hermes(text: &str, content: &str, calls: &[(&str, &str)]) {
    check(ToolFormat::Hermes, text, content, calls);
}

fn xml(text: &str, content: &str, calls: &[(&str, &str)]) {
    check(ToolFormat::Xml, text, content, calls);
}

#[test]
fn hermes_calls() {
    let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"é }\\\"\"}}\n</tool_call>";
    let arguments = "{\"a\": \"é }\\\"\"}";
    hermes(one, "", &[("f", arguments)]);
    hermes(&format!("Let me see.\n\n{one}"), "Let me see.", &[("f", arguments)]);
    hermes(&format!("{one}\n{one}\n"), "", &[("f", arguments), ("f", arguments)]);
    hermes(&format!("{one}\n\nDone.\n"), "Done.\n", &[("f", arguments)]);
    hermes(
        "<tool_call>{\"arguments\":{\"b\": [1, {}]},\"name\":\"g\"}</tool_call>",
        "",
        &[("g", "{\"b\": [1, {}]}")],
    );
    let pretty = "{\n  \"a\": 1\n}";
    let text = format!("<tool_call>\n{{\n  \"name\": \"f\",\n  \"arguments\": {pretty}\n}}\n");
    hermes(&text, "", &[("f", pretty)]);
}

#[test]
fn hermes_calls_of_other_forms() {
    let call = |arguments: &str| {
        format!("<tool_call>{{\"name\": \"f\", \"arguments\": {arguments}}}</tool_call>")
    };
    hermes(&call("\"{\\\"a\\\": 1}\""), "", &[("f", "{\"a\": 1}")]);
    hermes(&call("null"), "", &[("f", "{}")]);
    hermes(&call("[1, 2]"), "", &[("f", "[1, 2]")]);
    hermes(&call("{\"a\": \"x\ny\"}"), "", &[("f", "{\"a\": \"x\\ny\"}")]);
    hermes("<tool_call>{\"name\": \"f\"}</tool_call>", "", &[("f", "{}")]);
    hermes("<tool_call>{\"name\": \"f\"", "", &[("f", "{}")]);
    hermes("<tool_call>{\"id\": 3, \"name\": \"f\", \"x\": {}}", "", &[("f", "{}")]);
    hermes("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1", "", &[("f", "{\"a\": 1")]);
    // A brace too many, and a call whose end is missing.
    hermes(
        &format!("{}}}\n</tool_call>", call("{}").trim_end_matches("</tool_call>")),
        "",
        &[("f", "{}")],
    );
    let twice = "<tool_call>{\"name\": \"f\", \"arguments\": {}}\n";
    hermes(&twice.repeat(2), "", &[("f", "{}"), ("f", "{}")]);
}

#[test]
fn what_is_no_call_stays_text() {
    for text in [
        "",
        "plain <b>text</b>\n\n",
        "a <tool_cal",
        "<tool_call>\nnot JSON</tool_call>\n",
        "<tool_call>{\"nom\": \"f\"}</tool_call>",
        "<tool_call>{\"name\": 3}</tool_call>",
        "<tool_call>{\"name\": \"f",
        "<tool_call>",
    ] {
        hermes(text, text, &[]);
    }
    for text in ["a <functio", "<tool_call>\ntext", "<function=f\n", "<tool_call><function=>x"] {
        xml(text, text, &[]);
    }
    let broken = format!("<function={}>", "f".repeat(300));
    xml(&broken, &broken, &[]);
}

#[test]
fn xml_calls() {
    let call = |inner: &str| {
        format!("<tool_call>\n<function=get_weather>\n{inner}</function>\n</tool_call>")
    };
    let parameter =
        |name: &str, value: &str| format!("<parameter={name}>\n{value}\n</parameter>\n");
    let all = [
        parameter("city", "São \"Paulo\"\n<b>"),
        parameter("days", "3"),
        parameter("hourly", "True"),
        parameter("place", "{\"x\": [1]}"),
        parameter("other", "4"),
    ];
    let arguments = "{\"city\": \"São \\\"Paulo\\\"\\n<b>\", \"days\": 3, \"hourly\": true, \
                     \"place\": {\"x\": [1]}, \"other\": \"4\"}";
    xml(&call(&all.concat()), "", &[("get_weather", arguments)]);
    xml(&format!("I look.\n{}", call("")), "I look.", &[("get_weather", "{}")]);
    let two = format!("{}\n{}\nDone", call(""), call(&parameter("days", "many")));
    xml(&two, "Done", &[("get_weather", "{}"), ("get_weather", "{\"days\": \"many\"}")]);
    xml(&call(&parameter("city", "\n x \n")), "", &[("get_weather", "{\"city\": \"\\n x \\n\"}")]);
    xml(&call("<parameter=city>Rome</parameter>"), "", &[("get_weather", "{\"city\": \"Rome\"}")]);
}

#[test]
fn xml_calls_with_missing_tags() {
    let bare = "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>";
    let arguments = "{\"a\": \"1\"}";
    xml(bare, "", &[("f", arguments)]);
    xml(&format!("{bare}\n</tool_call>\n"), "", &[("f", arguments)]);
    xml(&format!("{bare}\nDone </tool_call>"), "Done </tool_call>", &[("f", arguments)]);
    xml(&format!("{bare}\n{bare}"), "", &[("f", arguments), ("f", arguments)]);
    xml("<tool_call><function=f><parameter=a>1", "", &[("f", arguments)]);
    xml("<tool_call><function=f><parameter=a>\n1\n</tool_call>x", "x", &[("f", arguments)]);
    xml("<tool_call><function=f>", "", &[("f", "{}")]);
    xml("<tool_call><function=f><parameter=\n</function></tool_call>", "", &[("f", "{}")]);
}

#[test]
fn calls_end_reasoning_and_reasoning_holds_none_before() {
    let text = "<think>\nI could <call> it\n<tool_call>{\"name\": \"f\"}</tool_call>";
    every_cut(text, |pieces| {
        let answer = parse(&format(ToolFormat::Hermes, usize::MAX), pieces);
        assert_eq!(answer.reasoning, "I could <call> it");
        assert_eq!((answer.content.as_str(), answer.calls.len()), ("", 1));
    });
}

#[test]
fn calls_over_the_limit_are_dropped() {
    let text = "<tool_call>{\"name\": \"f\"}</tool_call>".repeat(3);
    every_cut(&text, |pieces| {
        let answer = parse(&format(ToolFormat::Hermes, 1), pieces);
        assert_eq!((answer.content.as_str(), answer.calls.len()), ("", 1));
    });
}

#[test]
fn the_format_is_the_templates() {
    let hermes = include_str!("../../../../tests/data/chat/qwen3.jinja");
    assert_eq!(ToolFormat::of_template(hermes), Some(ToolFormat::Hermes));
    assert_eq!(ToolFormat::of_template("<tool_call>\n<function=f>"), Some(ToolFormat::Xml));
    assert_eq!(ToolFormat::of_template("{{ messages }}"), None);
}
