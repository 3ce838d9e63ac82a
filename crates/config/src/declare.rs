//! The macro behind the table of keys: what it makes of each row.
//!
//! A row is
//!
//! ```text
//! part field: type = default, group, kind, help
//!     [, named "name"] [, formerly "old name" …] [, stored "name"] [, sparse n] [, shown |settings| …];
//! ```
//!
//! - `part`: `Recipe` (decides the bytes of the result, stored in the checkpoint), `Run` (decides none of them) or
//!   `Refused` (read for the sake of its refusal, in no struct).
//! - `default`: text as a user would write it, `unset`, or `(derived "as told to people", |settings| value)`; a derived
//!   value is `None` while what it follows from is invalid, and the row stands below the rows that it follows from.
//! - `kind`: see `kind`.
//! - `named`: the key's name where it is not the field's: a nested key has a dot.
//! - `formerly`: old spellings, accepted in files, variables and flags.
//! - `stored`: the name in the checkpoint where it is not the field's.
//! - `sparse`: stored only where it is not its type's default, `n`th behind the fields that are always there (0: in its
//!   place among them). A key that is added to the recipe is sparse, so that older checkpoints keep their bytes.
//! - `shown`: the key's value as `config show` has it, where the field alone does not say.

/// The table of keys.
macro_rules! keys {
    ($(
        $(#[doc = $doc:literal])*
        $part:ident $field:ident : $type:ty = $default:tt, $group:ident, $kind:expr, $help:literal
        $(, named $name:literal)? $(, formerly $($old:literal)+)? $(, stored $stored:literal)? $(, sparse $place:literal)?
        $(, shown $shown:expr)?;
    )+) => {
        structs! {
            [] []
            $($part $field: $type, [
                #[doc = $help]
                $(#[doc = ""] #[doc = $doc])*
                $(#[serde(rename = $stored)])?
                $(#[serde(default)] #[doc = concat!("\n\nStored only where it is set and not the default (place ", $place, ").")])?
            ];)+
        }

        pub(crate) const KEYS: &[Key] = &[$(Key {
            name: first!($($name,)? stringify!($field),),
            part: Part::$part,
            default: key_default!($default),
            help: $help,
            group: $group,
            deprecated: &[$($($old),+)?],
            stored: first!($($stored,)? stringify!($field),),
            sparse: first!($(Some($place),)? None,),
            about: || About::new::<$type>($kind, key_default!($default)),
            plain: |settings| json!(settings.$field),
            shown: first!($($shown,)? |settings| {
                let kind: Kind<$type> = $kind;
                settings.$field.as_ref().map_or(Json::Null, |value| kind.show(value))
            },),
            read: |settings, raw| {
                let kind: Kind<$type> = $kind;
                settings.$field = match raw {
                    Some(raw) => Some(kind.parse(raw)?),
                    None => default_of!($default, kind, settings, $type),
                };
                Ok(())
            },
            check: |settings| {
                let kind: Kind<$type> = $kind;
                let checked = settings.$field.as_ref().map_or(Ok(()), |value| kind.check(value));
                if checked.is_err() {
                    settings.$field = None;
                }
                checked
            },
        }),+];

        /// The settings by key; `None` is unknown: not read yet, or invalid.
        #[derive(Debug, Clone, Default)]
        pub(crate) struct Settings {
            $(pub(crate) $field: Option<$type>,)+
            /// The name that the run has after its configuration file: outside `None` without a file, inside `None` where
            /// the file's name is no run's.
            pub(crate) run_id_of_file: Option<Option<String>>,
        }
    };
}

/// The structs of the two parts, gathered row by row.
macro_rules! structs {
    ([$($recipe:tt)*] [$($run:tt)*] Recipe $field:ident: $type:ty, $attributes:tt; $($rest:tt)*) => {
        structs! { [$($recipe)* $field: $type, $attributes;] [$($run)*] $($rest)* }
    };
    ([$($recipe:tt)*] [$($run:tt)*] Run $field:ident: $type:ty, $attributes:tt; $($rest:tt)*) => {
        structs! { [$($recipe)*] [$($run)* $field: $type, $attributes;] $($rest)* }
    };
    ([$($recipe:tt)*] [$($run:tt)*] Refused $field:ident: $type:ty, $attributes:tt; $($rest:tt)*) => {
        structs! { [$($recipe)*] [$($run)*] $($rest)* }
    };
    (
        [$($recipe:ident: $recipe_type:ty, [$($recipe_attribute:tt)*];)*]
        [$($run:ident: $run_type:ty, [$($run_attribute:tt)*];)*]
    ) => {
        /// Every setting that determines the bytes of the final checkpoint (an allow-list), as stored inside it.
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Recipe {
            $($($recipe_attribute)* pub $recipe: $recipe_type,)*
        }

        /// How a run is carried out. Nothing here may change a byte of the result.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub struct RunSettings {
            $($($run_attribute)* pub $run: $run_type,)*
        }

        impl Settings {
            /// The settings of a recipe, and of a run where there is one.
            #[allow(clippy::clone_on_copy)]
            pub(crate) fn of(recipe: &Recipe, run: Option<&RunSettings>) -> Settings {
                let mut settings = Settings::default();
                $(settings.$recipe = Some(recipe.$recipe.clone());)*
                if let Some(run) = run {
                    $(settings.$run = Some(run.$run.clone());)*
                }
                settings
            }

            /// The two halves, where every key is known.
            pub(crate) fn complete(self) -> Option<(Recipe, RunSettings)> {
                let recipe = Recipe { $($recipe: self.$recipe?,)* };
                Some((recipe, RunSettings { $($run: self.$run?,)* }))
            }
        }
    };
}

macro_rules! first {
    ($first:expr, $($rest:tt)*) => {
        $first
    };
}

macro_rules! key_default {
    (unset) => {
        KeyDefault::Unset
    };
    ((derived $text:literal, $derive:expr)) => {
        KeyDefault::Derived($text)
    };
    ($text:literal) => {
        KeyDefault::Value($text)
    };
}

macro_rules! default_of {
    (unset, $kind:ident, $settings:ident, $type:ty) => {
        Some(None)
    };
    ((derived $text:literal, $derive:expr), $kind:ident, $settings:ident, $type:ty) => {{
        let derive: fn(&Settings) -> Option<$type> = $derive;
        derive($settings)
    }};
    ($text:literal, $kind:ident, $settings:ident, $type:ty) => {
        $kind.parse(&Raw::Text($text.to_string())).ok()
    };
}
