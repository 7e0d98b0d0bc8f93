//! Enumerations whose values have names in logs, metrics and TypeScript.

/// Declares such an enumeration, with `ALL` and `name`. A value's code is what it crosses the boundary
/// as; without codes they count from 0.
macro_rules! named {
    (
        $(#[$about:meta])*
        $Type:ident: $repr:ident {
            $($(#[$doc:meta])+ $name:ident $(= $code:literal)?, $text:literal;)+
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr($repr)]
        pub enum $Type { $($(#[$doc])+ $name $(= $code)?,)+ }

        impl $Type {
            /// Every value, in the order of its code.
            pub const ALL: &'static [$Type] = &[$($Type::$name,)+];

            /// The name outside.
            pub const fn name(self) -> &'static str {
                match self { $($Type::$name => $text,)+ }
            }
        }
    };
}

pub(crate) use named;
