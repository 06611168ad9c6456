use super::template::Template;
use super::*;
use serde_json::json;

/// The events of a chunk with this text in one place or in two.
fn events(text: &str, has_two: &[&str]) -> String {
    let mut delta = json!({});
    for name in has_two {
        delta[*name] = text.into();
    }
    let chunk = json!({"id": "chatcmpl-1", "model": "a \"name\"", "choices": [{"delta": delta}]});
    format!("data: {chunk}\n\n")
}

#[test]
fn a_filled_template_is_what_would_have_been_written() {
    let texts = [
        "a",
        "",
        " \"quoted\" \\ \n\r\t\u{8}\u{c}\u{0}\u{1f}\u{7f}",
        "你好 😀 é\u{2028}\u{2029}</script>",
        "\u{fffd}\u{e000}",
        "text\":\"text",
    ];
    for names in [&["content"][..], &["reasoning_content", "reasoning"]] {
        let template = Template::of(events(Template::marker(), names).as_bytes());
        for text in texts {
            let mut out = b"before".to_vec();
            template.fill(text, &mut out);
            let expected = format!("before{}", events(text, names));
            assert_eq!(String::from_utf8(out), Ok(expected), "{text:?}");
        }
    }
}

#[tokio::test]
async fn patience_lasts_its_whole_time_from_when_something_came_last() {
    let interval = Duration::from_millis(40);
    let mut patience = Patience::new(interval);
    let end = async |patience: &mut Patience| {
        std::future::poll_fn(|task| patience.poll_end(task)).await;
    };
    // It is waited for a while, or to the end on a slow machine; then something comes, and a while
    // later it is waited for again.
    let _ = timeout(interval / 4, end(&mut patience)).await;
    tokio::time::sleep(interval / 2).await;
    patience.begin_anew();
    for _ in 0..3 {
        let since = tokio::time::Instant::now();
        end(&mut patience).await;
        assert!(since.elapsed() >= interval);
    }
}
