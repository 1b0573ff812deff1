// Goes before every file of a library (setup.py), so that one built beside a new glibc loads beside an old one, as far
// back as torch itself goes (glibc 2.28). `make wheels` fails where a symbol asks for a later one.

#pragma once

#include <features.h>

#if defined(__x86_64__) && defined(__GLIBC__)

// glibc keeps these two under their first versions as well; the linker would take the last (2.29 and 2.34).
__asm__(".symver pow,pow@GLIBC_2.2.5");
__asm__(".symver dlsym,dlsym@GLIBC_2.2.5");

// libstdc++ asks this before it counts references without atomics; it came with glibc 2.32. Ours says: many threads.
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}

#endif
