//! The known word that a mistyped one was probably meant to be.

/// Words longer than this are nobody's typing error; it also bounds the work.
const LONGEST: usize = 64;

/// The candidate most like `word`: one that it begins (`token` for `token_file`), else the one with the fewest typing
/// errors, if they are few for the word's length. The first of equals. Case does not count.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    nearest_few(word, candidates, 1).into_iter().next()
}

/// At most `count` candidates that are like `word`, the nearest first, each once.
#[must_use]
pub fn nearest_few<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<&'a str> {
    let word: Vec<char> = word.chars().take(LONGEST + 1).flat_map(char::to_lowercase).collect();
    if word.is_empty() || word.len() > LONGEST {
        return Vec::new();
    }
    let allowed = (word.len() / 3).clamp(1, 3);
    let rated = candidates.into_iter().filter_map(|candidate| {
        let other: Vec<char> = candidate.chars().take(LONGEST).flat_map(char::to_lowercase).collect();
        let begins = word.len() > 3 && other.starts_with(&word);
        // A beginning counts as a single error: it beats all but the closest of the others.
        let errors = if begins { distance(&word, &other).min(1) } else { distance(&word, &other) };
        // Of equals the one with the same first letter: that one is seldom mistyped.
        (errors <= allowed).then_some((errors, word.first() != other.first(), candidate))
    });
    let mut rated: Vec<_> = rated.collect();
    rated.sort_by_key(|(errors, starts_otherwise, _)| (*errors, *starts_otherwise));
    let mut few: Vec<&str> = Vec::new();
    for (.., candidate) in rated {
        if few.len() < count && !few.contains(&candidate) {
            few.push(candidate);
        }
    }
    few
}

/// Typing errors between two words: a letter too many, one missing, one wrong, or two neighbours swapped.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut previous = None;
    for (i, &x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        let mut left = i + 1;
        let mut last = None;
        // `up` and `diagonal` are the costs above and left above; `swap` is two rows and two columns back.
        for (j, (&y, (&diagonal, &up))) in b.iter().zip(row.iter().zip(row.iter().skip(1))).enumerate() {
            let mut cost = (diagonal + usize::from(x != y)).min(up + 1).min(left + 1);
            if previous == Some(y) && last == Some(x) {
                let swap = j.checked_sub(1).and_then(|column| before.get(column));
                cost = swap.map_or(cost, |swap| cost.min(swap + 1));
            }
            next.push(cost);
            (left, last) = (cost, Some(y));
        }
        before = std::mem::replace(&mut row, next);
        previous = Some(x);
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(a: &str, b: &str) -> usize {
        distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>())
    }

    #[test]
    fn typing_errors_are_counted_as_people_make_them() {
        for (a, b, n) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("interval", "interval", 0),
            ("intervall", "interval", 1),
            ("inteval", "interval", 1),
            ("intreval", "interval", 1),
            ("kitten", "sitting", 3),
            ("ba", "ab", 1),
        ] {
            assert_eq!(errors(a, b), n, "{a} {b}");
        }
    }

    #[test]
    fn beginnings_and_typing_errors_are_forgiven_and_other_words_are_not() {
        let known = ["http.token_file", "http.public_read", "poll.interval", "poll.strip_interval"];
        assert_eq!(nearest("http.token", known), Some("http.token_file"));
        assert_eq!(nearest("poll.intervall", known), Some("poll.interval"));
        assert_eq!(nearest("Poll.Interval", known), Some("poll.interval"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest(&"x".repeat(1_000), known), None);
    }
}
