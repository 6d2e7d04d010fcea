//! A group's rule for the query: which parameters belong to the key and reach the origin.
//!
//! Parameters are split at `&` and named by the raw bytes before `=`; nothing is decoded. Since the origin is asked
//! with exactly what is in the key, a parameter that another party would read differently cannot hide from the key: it
//! is in both or in neither.

use std::borrow::Cow;

/// Which part of the query counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum QueryRule {
    /// All of it, byte for byte.
    #[default]
    Keep,
    /// None of it.
    Drop,
    /// All of it, parameters in the order of their names; those of one name keep their order.
    Sort,
    /// Parameters with one of these names, in their order.
    Only(Vec<NamePattern>),
    /// Parameters with none of these names, in their order.
    Except(Vec<NamePattern>),
}

/// A parameter name, or the beginning of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    /// The name, or its beginning.
    pub text: String,
    /// Whether names may go on after `text`.
    pub prefix: bool,
}

impl NamePattern {
    /// Reads `name` or `beginning*`.
    pub fn parse(pattern: &str) -> Self {
        match pattern.strip_suffix('*') {
            Some(text) => NamePattern { text: text.to_owned(), prefix: true },
            None => NamePattern { text: pattern.to_owned(), prefix: false },
        }
    }

    /// Whether `name` is meant.
    pub fn matches(&self, name: &[u8]) -> bool {
        if self.prefix { name.starts_with(self.text.as_bytes()) } else { name == self.text.as_bytes() }
    }
}

impl QueryRule {
    /// The query of the key and of the origin's target. The bytes of a parameter are never changed.
    ///
    /// Rules that look at parameters drop empty ones (`a&&b`), and the `?` with the last parameter.
    pub fn apply<'a>(&self, query: Option<&'a [u8]>) -> Option<Cow<'a, [u8]>> {
        let query = query?;
        match self {
            QueryRule::Keep => Some(Cow::Borrowed(query)),
            QueryRule::Drop => None,
            QueryRule::Sort => {
                let mut parameters: Vec<&[u8]> = parameters(query).collect();
                parameters.sort_by(|first, second| name_of(first).cmp(name_of(second)));
                join(query, parameters)
            }
            QueryRule::Only(patterns) => {
                join(query, parameters(query).filter(|parameter| is_named(patterns, parameter)).collect())
            }
            QueryRule::Except(patterns) => {
                join(query, parameters(query).filter(|parameter| !is_named(patterns, parameter)).collect())
            }
        }
    }
}

fn parameters(query: &[u8]) -> impl Iterator<Item = &[u8]> {
    query.split(|&byte| byte == b'&').filter(|parameter| !parameter.is_empty())
}

fn name_of(parameter: &[u8]) -> &[u8] {
    &parameter[..memchr::memchr(b'=', parameter).unwrap_or(parameter.len())]
}

fn is_named(patterns: &[NamePattern], parameter: &[u8]) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name_of(parameter)))
}

fn join<'a>(query: &'a [u8], parameters: Vec<&'a [u8]>) -> Option<Cow<'a, [u8]>> {
    match parameters[..] {
        [] => None,
        [only] => Some(Cow::Borrowed(only)),
        _ => {
            let joined = parameters.join(&b'&');
            Some(if joined == query { Cow::Borrowed(query) } else { Cow::Owned(joined) })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn patterns(names: &[&str]) -> Vec<NamePattern> {
        names.iter().map(|name| NamePattern::parse(name)).collect()
    }

    fn rules() -> [QueryRule; 5] {
        [
            QueryRule::Keep,
            QueryRule::Drop,
            QueryRule::Sort,
            QueryRule::Only(patterns(&["w", "h", "a*"])),
            QueryRule::Except(patterns(&["utm_*", "w"])),
        ]
    }

    #[test]
    fn each_rule_on_the_same_queries() {
        // query; keep, drop, sort, only [w, h, a*], except [utm_*, w]
        for (query, expected) in [
            (None, [None; 5]),
            (Some(""), [Some(""), None, None, None, None]),
            (Some("&&"), [Some("&&"), None, None, None, None]),
            (Some("w=1"), [Some("w=1"), None, Some("w=1"), Some("w=1"), None]),
            (Some("w"), [Some("w"), None, Some("w"), Some("w"), None]),
            (Some("w=1&h=2"), [Some("w=1&h=2"), None, Some("h=2&w=1"), Some("w=1&h=2"), Some("h=2")]),
            (Some("b=2&&a=1&b=1"), [Some("b=2&&a=1&b=1"), None, Some("a=1&b=2&b=1"), Some("a=1"), Some("b=2&a=1&b=1")]),
            (Some("utm_source=x&q=1"), [Some("utm_source=x&q=1"), None, Some("q=1&utm_source=x"), None, Some("q=1")]),
            (
                Some("utm%5Fsource=x"),
                [Some("utm%5Fsource=x"), None, Some("utm%5Fsource=x"), None, Some("utm%5Fsource=x")],
            ),
            (Some("W=1"), [Some("W=1"), None, Some("W=1"), None, Some("W=1")]),
            (Some("%77=1"), [Some("%77=1"), None, Some("%77=1"), None, Some("%77=1")]),
            (Some("q=1;w=2"), [Some("q=1;w=2"), None, Some("q=1;w=2"), None, Some("q=1;w=2")]),
            (Some("=1&a"), [Some("=1&a"), None, Some("=1&a"), Some("a"), Some("=1&a")]),
            (
                Some("ab=1&a=2=3"),
                [Some("ab=1&a=2=3"), None, Some("a=2=3&ab=1"), Some("ab=1&a=2=3"), Some("ab=1&a=2=3")],
            ),
        ] {
            for (rule, expected) in rules().iter().zip(expected) {
                let applied = rule.apply(query.map(str::as_bytes));
                assert_eq!(applied.as_deref(), expected.map(str::as_bytes), "{query:?} by {rule:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_rule_changes_nothing_twice_and_never_a_parameter(query in "[wah=&_;%]{0,12}") {
            for rule in rules() {
                let once = rule.apply(Some(query.as_bytes()));
                prop_assert_eq!(rule.apply(once.as_deref()), once.clone());
                for parameter in once.as_deref().into_iter().flat_map(parameters) {
                    prop_assert!(parameters(query.as_bytes()).any(|original| original == parameter));
                }
            }
        }

        #[test]
        fn sorting_joins_what_differs_in_the_order_of_names_only(
            names in prop::collection::hash_set("[a-z]{1,3}", 0..6), seed in any::<u64>()
        ) {
            let mut list: Vec<String> = names.into_iter().map(|name| format!("{name}=1")).collect();
            let first = list.join("&");
            let turn = seed as usize % list.len().max(1);
            list.rotate_left(turn);
            let second = list.join("&");
            let sorted = |query: &str| QueryRule::Sort.apply(Some(query.as_bytes())).map(Cow::into_owned);
            prop_assert_eq!(sorted(&first), sorted(&second));
        }
    }
}
