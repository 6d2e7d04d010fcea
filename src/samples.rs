//! The sample pictures, inside the program: `demo` and `init` need no files.

/// One sample file.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Name of the file.
    pub name: &'static str,
    /// Its media type.
    pub media_type: &'static str,
    /// Its bytes.
    pub bytes: &'static [u8],
}

macro_rules! sample {
    ($name:literal, $media_type:literal) => {
        Sample { name: $name, media_type: $media_type, bytes: include_bytes!(concat!("../conf/pictures/", $name)) }
    };
}

/// All of `conf/pictures`.
pub const PICTURES: &[Sample] = &[
    sample!("autumn.png", "image/png"),
    sample!("dawn.png", "image/png"),
    sample!("dusk.png", "image/png"),
    sample!("night.png", "image/png"),
    sample!("noon.png", "image/png"),
    sample!("sea.png", "image/png"),
    sample!("index.html", "text/html; charset=utf-8"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_of_the_folder_are_in_the_program() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/pictures");
        let mut files: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let mut names: Vec<&str> = PICTURES.iter().map(|picture| picture.name).collect();
        files.sort();
        names.sort_unstable();
        assert_eq!(files, names);
    }
}
