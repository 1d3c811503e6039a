//! Texts of others inside HTML and SVG.

use std::fmt::{self, Display, Write};

/// A value whose text means nothing to HTML or XML, neither between tags nor in a quoted attribute. Characters that XML
/// does not allow become U+FFFD, so that one alias cannot spoil a whole drawing.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<T>(pub T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaper(f), "{}", self.0)
    }
}

struct Escaper<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaper<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| match c {
            '&' => self.0.write_str("&amp;"),
            '<' => self.0.write_str("&lt;"),
            '>' => self.0.write_str("&gt;"),
            '"' => self.0.write_str("&quot;"),
            '\'' => self.0.write_str("&#39;"),
            '\t' | '\n' => self.0.write_char(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => self.0.write_char('\u{fffd}'),
            other => self.0.write_char(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_a_plug_is_markup() {
        assert_eq!(
            Escaped("<script>alert('x')</script> & \"K\u{fc}che\"").to_string(),
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;K\u{fc}che&quot;"
        );
        assert_eq!(Escaped("a\u{0}\u{1b}\u{ffff}\r\nb").to_string(), "a\u{fffd}\u{fffd}\u{fffd}\u{fffd}\nb");
    }
}
