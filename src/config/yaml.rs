//! YAML text as a tree in which every value knows its place and its key.
//!
//! Deserializing straight into types would stop at the first wrong value; a tree lets the checks go on and find all.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, ScanError, Span};

use super::problem::Position;

/// A value with its place and with the path of keys that leads to it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) position: Position,
    /// Such as `groups[0].freshness.max`; stays as it was written when a group inherits the value from `defaults`.
    pub(super) path: String,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A text; what it means is decided by the key that it stands under.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    /// The text after replacement.
    pub(super) text: String,
    /// The text as written, when a replacement changed it: what messages show, because `text` may be a secret.
    pub(super) written: Option<String>,
    /// Holds a variable that is not set, and that is allowed: no check applies to the text.
    pub(super) unset: bool,
}

/// A key and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_position: Position,
    pub(super) node: Node,
}

/// A mistake of the text itself.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) position: Position,
    pub(super) path: String,
    pub(super) message: String,
}

/// More values than any real configuration has; aliases of aliases would otherwise grow without end.
const NODES_MAX: usize = 100_000;

/// Deeper than any key of ours; bounds the recursion of everything that walks a tree.
const DEPTH_MAX: usize = 32;

/// Longer texts are cut in messages.
const SHOWN_CHARACTERS: usize = 100;

/// Reads one YAML document. An empty text is `Null`.
///
/// Keys that appear twice are reported and the second is ignored, so that the rest can still be checked.
pub(super) fn parse(text: &str) -> (Option<Node>, Vec<Malformed>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = granit_parser::options! { emit_comments: false, disallow_directives: true };
    let mut builder = Builder {
        parser: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        nodes: 0,
        malformed: Vec::new(),
    };
    let root = match builder.document() {
        Ok(root) => Some(root),
        Err(malformed) => {
            builder.malformed.push(malformed);
            None
        }
    };
    (root, builder.malformed)
}

struct Builder<'text> {
    parser: Parser<'text, granit_parser::StrInput<'text>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    malformed: Vec<Malformed>,
}

impl<'text> Builder<'text> {
    fn document(&mut self) -> Result<Node, Malformed> {
        let mut root = None;
        while let Some((event, span)) = self.next_event()? {
            match event {
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd | Event::StreamEnd => {}
                _ if root.is_some() => {
                    return Err(Malformed::new(place(&span), "", "found a second document, expected only one"));
                }
                event => root = Some(self.node(event, &span, String::new(), 0)?),
            }
        }
        Ok(root.unwrap_or(Node { position: Position::START, path: String::new(), value: Value::Null }))
    }

    fn next_event(&mut self) -> Result<Option<(Event<'text>, Span)>, Malformed> {
        match self.parser.next() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(error)) => Err(not_yaml(&error)),
        }
    }

    /// Builds the value that begins with `event`.
    fn node(&mut self, event: Event<'text>, span: &Span, path: String, depth: usize) -> Result<Node, Malformed> {
        let position = place(span);
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(Malformed::new(position, &path, format!("found more than {NODES_MAX} values in the file")));
        }
        if depth > DEPTH_MAX {
            return Err(Malformed::new(position, &path, format!("found more than {DEPTH_MAX} levels of nesting")));
        }
        let (value, anchor, tag) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let null = style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = match null {
                    true => Value::Null,
                    false => Value::Scalar(Scalar { text: text.into_owned(), written: None, unset: false }),
                };
                (value, anchor, tag)
            }
            Event::SequenceStart(_, anchor, tag) => (Value::List(self.list(&path, depth)?), anchor, tag),
            Event::MappingStart(_, anchor, tag) => (Value::Map(self.map(&path, depth)?), anchor, tag),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(Malformed::new(position, &path, "found an alias inside of the value that it repeats"));
                };
                // Anchors that hold aliases of anchors would otherwise nest without end.
                if depth + node.height() > DEPTH_MAX {
                    let message = format!("found more than {DEPTH_MAX} levels of nesting");
                    return Err(Malformed::new(position, &path, message));
                }
                let mut node = node.clone();
                self.nodes += node.count();
                node.move_to(&path);
                return Ok(node);
            }
            _ => return Err(Malformed::new(position, &path, "not YAML: found the end, expected a value")),
        };
        if tag.is_some() {
            self.malformed.push(Malformed::new(position, &path, "found a tag (!), expected a plain value"));
        }
        let node = Node { position, path, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, path: &str, depth: usize) -> Result<Vec<Node>, Malformed> {
        let mut list = Vec::new();
        while let Some((event, span)) = self.next_event()? {
            if matches!(event, Event::SequenceEnd) {
                break;
            }
            list.push(self.node(event, &span, format!("{path}[{}]", list.len()), depth + 1)?);
        }
        Ok(list)
    }

    fn map(&mut self, path: &str, depth: usize) -> Result<Vec<Entry>, Malformed> {
        let mut map: Vec<Entry> = Vec::new();
        while let Some((event, span)) = self.next_event()? {
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let key_position = place(&span);
            let key = match self.node(event, &span, path.to_owned(), depth + 1)?.value {
                Value::Scalar(scalar) => Some(scalar.text),
                Value::Null => Some("null".to_owned()),
                Value::List(_) | Value::Map(_) => None,
            };
            let Some((event, span)) = self.next_event()? else { break };
            let mut node = self.node(event, &span, join(path, key.as_deref().unwrap_or("?")), depth + 1)?;
            let Some(key) = key else {
                self.malformed.push(Malformed::new(key_position, path, "found a list or map, expected a key"));
                continue;
            };
            if matches!(node.value, Value::Null) {
                node.position = key_position;
            }
            match map.iter().find(|entry| entry.key == key) {
                Some(first) => {
                    let message = format!("appears twice, first in line {}", first.key_position.line);
                    self.malformed.push(Malformed::new(key_position, &node.path, message));
                }
                None => map.push(Entry { key, key_position, node }),
            }
        }
        Ok(map)
    }
}

impl Node {
    /// What the value is, for messages; never the text behind a replacement.
    pub(super) fn shown(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
            Value::Scalar(scalar) => {
                let text = scalar.written.as_ref().unwrap_or(&scalar.text);
                match text.char_indices().nth(SHOWN_CHARACTERS) {
                    Some((end, _)) => format!("{:?}...", &text[..end]),
                    None => format!("{text:?}"),
                }
            }
        }
    }

    /// Whether the text holds the content of a file, which may be a secret in the wrong place.
    pub(super) fn is_from_file(&self) -> bool {
        matches!(&self.value, Value::Scalar(Scalar { written: Some(written), .. }) if written.contains("${file:"))
    }

    /// How many values it holds, itself included.
    fn count(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Scalar(_) => 0,
            Value::List(list) => list.iter().map(Node::count).sum(),
            Value::Map(map) => map.iter().map(|entry| entry.node.count()).sum::<usize>(),
        }
    }

    /// How many levels lie below it.
    fn height(&self) -> usize {
        match &self.value {
            Value::Null | Value::Scalar(_) => 0,
            Value::List(list) => list.iter().map(|node| node.height() + 1).max().unwrap_or(0),
            Value::Map(map) => map.iter().map(|entry| entry.node.height() + 1).max().unwrap_or(0),
        }
    }

    /// Renames the node and all below it, as its new place wants.
    pub(super) fn move_to(&mut self, path: &str) {
        self.path = path.to_owned();
        match &mut self.value {
            Value::Null | Value::Scalar(_) => {}
            Value::List(list) => {
                list.iter_mut().enumerate().for_each(|(index, node)| node.move_to(&format!("{path}[{index}]")));
            }
            Value::Map(map) => map.iter_mut().for_each(|entry| entry.node.move_to(&join(path, &entry.key))),
        }
    }

    /// Calls `act` for this node and for every node below it.
    pub(super) fn for_each_mut(&mut self, act: &mut impl FnMut(&mut Node)) {
        act(self);
        match &mut self.value {
            Value::Null | Value::Scalar(_) => {}
            Value::List(list) => list.iter_mut().for_each(|node| node.for_each_mut(act)),
            Value::Map(map) => map.iter_mut().for_each(|entry| entry.node.for_each_mut(act)),
        }
    }
}

impl Malformed {
    fn new(position: Position, path: &str, message: impl Into<String>) -> Self {
        Malformed { position, path: path.to_owned(), message: message.into() }
    }
}

/// The path of `key` below `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn place(span: &Span) -> Position {
    Position { line: span.start.line().max(1), column: span.start.col().saturating_add(1) }
}

fn not_yaml(error: &ScanError) -> Malformed {
    let marker = error.marker();
    let position = Position { line: marker.line().max(1), column: marker.col().saturating_add(1) };
    Malformed { position, path: String::new(), message: format!("not YAML: {}", error.info()) }
}
