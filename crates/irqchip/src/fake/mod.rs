// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A model of the kernel that enforces the kernel's rules. To be written.
