//! Plain counters that one thread keeps and others read copies of: [`counters!`] makes a structure of them that knows their names.

macro_rules! counters {
    ($(#[$about:meta])* $counters:ident { $(..$inner:ident: $of:ty,)? $($(#[$doc:meta])* $name:ident,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $counters {
            $(
                /// What is counted besides.
                pub $inner: $of,
            )?
            $($(#[$doc])* pub $name: u64,)*
        }

        impl std::ops::AddAssign for $counters {
            fn add_assign(&mut self, other: Self) {
                $(self.$inner += other.$inner;)?
                $(self.$name += other.$name;)*
            }
        }

        impl $counters {
            /// Every counter of its own with its name, for metrics.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

pub(crate) use counters;
