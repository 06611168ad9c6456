//! Prompts of models that embed or judge texts: the text is a client's, what is around it is not.

use super::tokenizer::{TextFrame, Tokenizer};
use super::{TextError, TextStage};
use models::TokenId;

/// What stands around a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    None,
    /// What the tokenizer adds to every text, such as an end token.
    Tokenizer,
    /// In these, special tokens stand for themselves.
    Texts {
        before: &'static str,
        after: &'static str,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FramedText {
    /// No string in it becomes a special token.
    Text(String),
    /// As they are, without a frame.
    Tokens(Vec<TokenId>),
}

impl FramedText {
    /// Of text.
    pub fn num_bytes(&self) -> usize {
        match self {
            FramedText::Text(text) => text.len(),
            FramedText::Tokens(_) => 0,
        }
    }
}

impl TextStage {
    /// Encodes all texts, each with its frame. `tokens_max`: a prompt that is longer loses the end
    /// of its text, never its frame; `None`: whatever length.
    ///
    /// Errors: as `encode_text`, over all of them; `NoRoom` when the frame alone takes
    /// `tokens_max`.
    pub async fn encode_framed(
        &self,
        frame: Frame,
        texts: Vec<FramedText>,
        tokens_max: Option<usize>,
    ) -> Result<Vec<Vec<TokenId>>, TextError> {
        let bytes = self.checked_size(texts.iter().map(FramedText::num_bytes).sum())?;
        let tokenizer = self.tokenizer.clone();
        let encode = move || {
            let frame = match frame {
                Frame::None => TextFrame::default(),
                Frame::Tokenizer => tokenizer.frame().clone(),
                Frame::Texts { before, after } => {
                    TextFrame { before: tokenizer.encode(before)?, after: tokenizer.encode(after)? }
                }
            };
            let prompts = texts.into_iter().map(|text| frame.around(&tokenizer, text, tokens_max));
            prompts.collect()
        };
        self.pool.run(bytes, encode).await?
    }
}

impl TextFrame {
    fn around(
        &self,
        tokenizer: &Tokenizer,
        text: FramedText,
        tokens_max: Option<usize>,
    ) -> Result<Vec<TokenId>, TextError> {
        let mut ids = match text {
            FramedText::Tokens(ids) => ids,
            FramedText::Text(text) => {
                let mut ids = self.before.clone();
                tokenizer.encode_as_text(&text, &mut ids)?;
                ids.extend(&self.after);
                ids
            }
        };
        match tokens_max {
            Some(tokens_max) if ids.len() > tokens_max => self.cut(&mut ids, tokens_max)?,
            _ => {}
        }
        Ok(ids)
    }

    /// Tokens of a client's own need not have the frame.
    fn cut(&self, ids: &mut Vec<TokenId>, tokens_max: usize) -> Result<(), TextError> {
        let after = if ids.ends_with(&self.after) { self.after.len() } else { 0 };
        let before = if ids.starts_with(&self.before) { self.before.len() } else { 0 };
        let frame = before + after;
        if tokens_max <= frame {
            return Err(TextError::NoRoom { tokens_max, frame });
        }
        ids.drain(tokens_max - after..ids.len() - after);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{IM_END, IM_START, block_on, stage};
    use super::*;

    const FRAME: Frame = Frame::Texts { before: "<|im_start|>a", after: "<|im_end|>" };

    fn encode(text: FramedText, tokens_max: Option<usize>) -> Result<Vec<u32>, TextError> {
        let stage = stage("{{ messages }}");
        let prompts = block_on(stage.encode_framed(FRAME, vec![text], tokens_max))?;
        Ok(prompts[0].iter().map(|id| id.0).collect())
    }

    #[test]
    fn special_tokens_are_those_of_the_frame() {
        let (start, end) = (IM_START.0, IM_END.0);
        let text = |text: &str| encode(FramedText::Text(text.to_owned()), None).unwrap();
        assert_eq!(text("xy"), [start, 97, 120, 121, end]);
        assert_eq!(text(""), [start, 97, end]);
        let user_end = text("<|im_end|>");
        assert_eq!(user_end.iter().filter(|&&id| id == end).count(), 1);
        let tokens = FramedText::Tokens(vec![TokenId(97), IM_END]);
        assert_eq!(encode(tokens, None).unwrap(), [97, end]);
    }

    #[test]
    fn a_long_text_loses_its_end_and_keeps_its_frame() {
        let (start, end) = (IM_START.0, IM_END.0);
        let text = || FramedText::Text("xyz".to_owned());
        assert_eq!(encode(text(), Some(6)).unwrap(), [start, 97, 120, 121, 122, end]);
        assert_eq!(encode(text(), Some(4)).unwrap(), [start, 97, 120, end]);
        let refused = Err(TextError::NoRoom { tokens_max: 3, frame: 3 });
        assert_eq!(encode(text(), Some(3)), refused);
        let own = |ids: &[u32]| FramedText::Tokens(ids.iter().copied().map(TokenId).collect());
        assert_eq!(encode(own(&[1, 2, 3, end]), Some(2)).unwrap(), [1, end]);
        assert_eq!(encode(own(&[1, 2, 3]), Some(2)).unwrap(), [1, 2]);
    }
}
