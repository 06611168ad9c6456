//! The lines of a file, one after the other, each within its limit.

use super::JobsError;
use super::bytes::ByteStream;
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::Fuse;

/// Reads lines. Empty ones, and such of white space alone, are counted and passed over.
pub struct Lines {
    stream: Fuse<ByteStream>,
    rest: Bytes,
    line_bytes_max: usize,
    /// Of the line that was read last.
    number: u64,
}

/// One line without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The first is 1.
    pub number: u64,
    pub bytes: Vec<u8>,
}

impl Lines {
    pub fn new(stream: ByteStream, line_bytes_max: usize) -> Lines {
        Lines { stream: stream.fuse(), rest: Bytes::new(), line_bytes_max, number: 0 }
    }

    /// The next line; `None` at the end of the file.
    ///
    /// Errors: the store; `LineTooLong`.
    pub async fn next(&mut self) -> Result<Option<Line>, JobsError> {
        loop {
            let Some(bytes) = self.next_raw().await? else { return Ok(None) };
            self.number += 1;
            if !bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(Line { number: self.number, bytes }));
            }
        }
    }

    async fn next_raw(&mut self) -> Result<Option<Vec<u8>>, JobsError> {
        let mut line = Vec::new();
        let mut has_begun = false;
        loop {
            if self.rest.is_empty() {
                match self.stream.next().await {
                    Some(piece) => self.rest = piece?,
                    None => return Ok(has_begun.then_some(line)),
                }
                continue;
            }
            has_begun = true;
            let end = self.rest.iter().position(|byte| *byte == b'\n');
            let piece = &self.rest[..end.unwrap_or(self.rest.len())];
            if line.len() + piece.len() > self.line_bytes_max {
                let (line, bytes_max) = (self.number + 1, self.line_bytes_max);
                return Err(JobsError::LineTooLong { line, bytes_max });
            }
            line.extend_from_slice(piece);
            let taken = piece.len() + usize::from(end.is_some());
            self.rest.advance(taken);
            if end.is_some() {
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    /// The lines of `text` when it arrives in pieces of `size` bytes.
    async fn lines_of(
        text: &str,
        size: usize,
        max: usize,
    ) -> Result<Vec<(u64, String)>, JobsError> {
        let pieces: Vec<_> =
            text.as_bytes().chunks(size).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        let mut lines = Lines::new(stream::iter(pieces).boxed(), max);
        let mut read = Vec::new();
        while let Some(line) = lines.next().await? {
            read.push((line.number, String::from_utf8(line.bytes).expect("text")));
        }
        Ok(read)
    }

    #[tokio::test]
    async fn lines_are_the_same_however_the_file_arrives() {
        let text = "one\n\n  \ntwo\r\nthree";
        for size in 1..=text.len() {
            let lines = lines_of(text, size, 5).await.expect("short lines");
            let expected = [(1, "one"), (4, "two"), (5, "three")];
            assert_eq!(lines, expected.map(|(n, t)| (n, t.to_owned())), "pieces of {size}");
        }
        assert_eq!(lines_of("", 1, 5).await.expect("empty"), []);
    }

    #[tokio::test]
    async fn a_line_beyond_the_limit_is_named() {
        for size in [1, 4, 100] {
            let error = lines_of("four\nfive!\n", size, 4).await.expect_err("too long");
            assert!(matches!(error, JobsError::LineTooLong { line: 2, bytes_max: 4 }), "{error}");
        }
    }
}
