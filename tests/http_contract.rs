//! The HTTP contract, over a real socket: what goes in and out, byte for byte.

use tests::http::{Setup, TestServer};

#[test]
fn whole_chat_answer_byte_for_byte() {
    let server = TestServer::start(Setup::default());
    let answer = server.chat(
        r##"{"model": "tiny", "messages": [{"role": "user", "content": "#say:Hi, \u00fc!#"}]}"##,
    );
    let expected = r##"{"id":"chatcmpl-*","object":"chat.completion","created":*,"model":"tiny","system_fingerprint":"build-0.1.0","choices":[{"index":0,"message":{"role":"assistant","content":"Hi, ü!","refusal":null},"logprobs":null,"finish_reason":"stop","stop_reason":null}],"usage":{"prompt_tokens":20,"completion_tokens":8,"total_tokens":28,"prompt_tokens_details":{"cached_tokens":0}}}"##;
    assert_eq!(answer.masked(), expected);
}
