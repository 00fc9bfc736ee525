// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fmt;
use std::io;

/// An error number of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(i32);

macro_rules! names {
    ($($name:ident = $number:literal),* $(,)?) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`, ", stringify!($number), " on all of Linux's architectures that KVM runs on.")]
                pub const $name: Self = Self($number);
            )*

            /// The C name, for those that interrupt code meets.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

names! {
    EPERM = 1, ENOENT = 2, EINTR = 4, EIO = 5, ENXIO = 6, E2BIG = 7, EBADF = 9, EAGAIN = 11, ENOMEM = 12, EACCES = 13, EFAULT = 14,
    EBUSY = 16, EEXIST = 17, ENODEV = 19, EINVAL = 22, ENFILE = 23, EMFILE = 24, ENOTTY = 25, ENOSPC = 28, ENOSYS = 38,
    EOPNOTSUPP = 95,
}

impl Errno {
    /// The error with this number.
    #[must_use]
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// The number, positive as in C.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            // `io::Error` appends "(os error N)", which the name makes superfluous.
            Some(name) => {
                let text = io::Error::from_raw_os_error(self.0).to_string();
                let text = text.split(" (os error").next().unwrap_or(name);
                write!(f, "{text} ({name})")
            }
            None => io::Error::from_raw_os_error(self.0).fmt(f),
        }
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_text_and_name() {
        assert_eq!(Errno::EEXIST.to_string(), "File exists (EEXIST)");
        assert!(Errno::new(9999).to_string().contains("9999"));
    }
}
