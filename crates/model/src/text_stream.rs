//! Decodes tokens that arrive one at a time.

/// Returns the text of tokens as soon as it is certain. A character whose bytes are spread over several tokens is held
/// back until it is complete.
///
/// `decode` turns tokens into text, with U+FFFD for invalid UTF-8; more tokens must give a longer text.
///
/// ```
/// use templar_model::TextStream;
///
/// let decode = |tokens: &[u32]| {
///     let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
///     String::from_utf8_lossy(&bytes).into_owned()
/// };
/// let mut text = TextStream::new(decode, &[]);
/// assert_eq!([0x68, 0xc3, 0xa9].map(|token| text.push(token)), ["h", "", "é"]);
/// ```
#[derive(Debug)]
pub struct TextStream<D> {
    decode: D,
    /// The tokens of the last piece that was returned, because decoders look at what precedes a token, and those after
    /// it.
    tokens: Vec<u32>,
    /// How many of `tokens` were returned.
    given: usize,
    /// The text of the returned tokens.
    given_text: String,
}

impl<D: Fn(&[u32]) -> String> TextStream<D> {
    /// Streams the text that follows `prompt`, which itself is not returned.
    pub fn new(decode: D, prompt: &[u32]) -> Self {
        let given_text = decode(prompt);
        Self { decode, tokens: prompt.to_vec(), given: prompt.len(), given_text }
    }

    /// The text that has become certain with this token; may be empty.
    pub fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        let text = (self.decode)(&self.tokens);
        // The replacement character may stand for the beginning of another character.
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return String::new();
        }
        let Some(new) = text.strip_prefix(&self.given_text) else { return String::new() };
        let new = new.to_owned();
        self.tokens.drain(..self.given);
        self.given = self.tokens.len();
        self.given_text = (self.decode)(&self.tokens);
        new
    }

    /// The text that was held back, at the end.
    pub fn finish(self) -> String {
        let text = (self.decode)(&self.tokens);
        let same = text.chars().zip(self.given_text.chars()).take_while(|(new, given)| new == given).count();
        text.chars().skip(same).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().map(|&token| u8::try_from(token).unwrap()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// For any bytes, the pieces are the whole text, and only the last may end within a character.
    #[test]
    fn pieces_are_the_text() {
        let texts: [&[u8]; 5] =
            ["naïve 日本 🦀!".as_bytes(), b"\xff\xfe plain \xe6\x97", b"", b"\xc3", b"a\xf0\x9f\xa6b\xa9"];
        for text in texts {
            let mut stream = TextStream::new(bytes, &[104, 105]);
            let mut pieces: Vec<String> = text.iter().map(|&byte| stream.push(byte.into())).collect();
            assert!(pieces.iter().all(|piece| !piece.ends_with(char::REPLACEMENT_CHARACTER)), "{pieces:?}");
            pieces.push(stream.finish());
            assert_eq!(pieces.concat(), String::from_utf8_lossy(text), "{pieces:?}");
        }
        let mut stream = TextStream::new(bytes, &[]);
        let pieces: Vec<String> = "né🦀".bytes().map(|byte| stream.push(byte.into())).collect();
        assert_eq!(pieces, ["n", "", "é", "", "", "", "🦀"]);
    }

    /// Words stay separate with a decoder that drops the space before the first word, as SentencePiece's do.
    #[test]
    fn a_leading_space_is_dropped_only_once() {
        let words = |tokens: &[u32]| tokens.iter().map(|token| format!("w{token}")).collect::<Vec<_>>().join(" ");
        let mut stream = TextStream::new(words, &[1]);
        assert_eq!([2, 3].map(|token| stream.push(token)), [" w2", " w3"]);
        assert_eq!(stream.finish(), "");
    }
}
