/* Programs that write to files in every way that Linux has: writers NAME FOLDER SEED. Each takes a second or so, pauses as programs do, and ends; 77: the system does not
   have that. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define MIB (1 << 20)

static unsigned long long state;

static unsigned draw(unsigned below)
{
	state = state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (unsigned)(state >> 33) % below;
}

static void check(int is_good, const char *what)
{
	if (is_good)
		return;
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS || errno == EPERM ? 77 : 1);
}

static void pause_some(void)
{
	static const unsigned pauses[] = { 0, 0, 100, 1000, 5000, 12000 };
	unsigned pause = pauses[draw(6)];
	if (pause)
		usleep(pause);
}

static char *noise(size_t length)
{
	static char bytes[MIB];
	for (size_t at = 0; at < length; at++)
		bytes[at] = (char)draw(256);
	return bytes;
}

static void put(int file, size_t length, off_t at)
{
	check(pwrite(file, noise(length), length, at) == (ssize_t)length, "pwrite");
}

static void add(int file, size_t length)
{
	check(write(file, noise(length), length) == (ssize_t)length, "write");
}

static int made(const char *name, size_t length)
{
	int file = open(name, O_RDWR | O_CREAT, 0600);
	check(file >= 0, name);
	for (size_t at = 0; at < length; at += MIB)
		put(file, length - at < MIB ? length - at : MIB, (off_t)at);
	return file;
}

static off_t length_of(int file)
{
	struct stat stat;
	check(fstat(file, &stat) == 0, "fstat");
	return stat.st_size;
}

/* Pages of a database that grows. */
static void pages(void)
{
	int file = made("pages", 2 * MIB);
	for (int n = 0; n < 200; n++) {
		off_t end = length_of(file);
		put(file, PAGE, (off_t)draw((unsigned)(end / PAGE)) * PAGE);
		if (draw(4) == 0)
			put(file, 1000, end);
		pause_some();
	}
}

/* A counter at the beginning, and a record at the end. */
static void header(void)
{
	int file = made("header", 16);
	for (unsigned long long n = 1; n <= 400; n++) {
		put(file, 10 + draw(300), length_of(file));
		check(pwrite(file, &n, 8, 0) == 8, "pwrite");
		pause_some();
	}
}

/* A log of a fixed length, written in order and from the beginning again. */
static void ring(void)
{
	int file = made("ring", 4 * MIB);
	off_t at = 0;
	for (int n = 0; n < 400; n++) {
		size_t length = 512 * (1 + draw(16));
		if (at + (off_t)length > 4 * MIB)
			at = 0;
		put(file, length, at);
		at += (off_t)length;
		pause_some();
	}
}

/* A log that room is made for before. */
static void preallocated(void)
{
	int file = made("preallocated", 1);
	check(fallocate(file, 0, 0, MIB) == 0, "fallocate");
	for (off_t at = 0; at < MIB; at += 8192) {
		put(file, 8192, at);
		pause_some();
	}
	check(fallocate(file, FALLOC_FL_KEEP_SIZE, MIB, MIB) == 0, "fallocate");
	put(file, 10, MIB);
	check(ftruncate(file, MIB + 5) == 0, "ftruncate");
}

static void holes(void)
{
	int file = made("holes", 2 * MIB);
	for (int n = 0; n < 60; n++) {
		off_t at = (off_t)draw(500) * PAGE;
		if (draw(2))
			check(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, PAGE * (1 + draw(8))) == 0, "punch");
		else
			put(file, 100, at + draw(PAGE));
		pause_some();
	}
	check(fallocate(file, FALLOC_FL_ZERO_RANGE, 3 * PAGE, 9 * PAGE) == 0 || errno == EOPNOTSUPP, "zero");
	/* Far behind the end. */
	put(file, 10, 64 * MIB);
}

static void ranges(void)
{
	int file = made("ranges", MIB);
	for (int n = 0; n < 20; n++) {
		off_t at = (off_t)draw(200) * PAGE;
		int mode = draw(2) ? FALLOC_FL_COLLAPSE_RANGE : FALLOC_FL_INSERT_RANGE;
		check(fallocate(file, mode, at, PAGE) == 0, "collapse or insert");
		put(file, 50, draw(MIB - 100 * PAGE));
		pause_some();
	}
}

static void truncates(void)
{
	int file = made("truncates", 100000);
	for (int n = 0; n < 150; n++) {
		off_t end = length_of(file);
		switch (draw(4)) {
		case 0:
			check(ftruncate(file, draw((unsigned)end + 1)) == 0, "ftruncate");
			break;
		case 1:
			check(ftruncate(file, end + draw(50000)) == 0, "ftruncate");
			break;
		case 2:
			put(file, 300, end);
			break;
		default:
			put(file, 1, end ? draw((unsigned)end) : 0);
		}
		pause_some();
	}
}

/* In place, with the time set back after it. */
static void times(void)
{
	int file = made("times", 200000);
	usleep(30000);
	for (int n = 0; n < 60; n++) {
		struct stat stat;
		check(fstat(file, &stat) == 0, "fstat");
		put(file, 100, draw(199000));
		struct timespec back[2] = { stat.st_atim, stat.st_mtim };
		check(futimens(file, back) == 0, "futimens");
		pause_some();
	}
}

static void copies(void)
{
	int from = made("copies-from", 300000), to = made("copies-to", 300000);
	for (int n = 0; n < 60; n++) {
		off_t in = draw(250000), out = draw(290000);
		check(copy_file_range(from, &in, to, &out, 1 + draw(40000), 0) > 0, "copy_file_range");
		put(from, 20, draw(299000));
		pause_some();
	}
}

/* Two files that change names, and are written to under both. */
static void exchanges(void)
{
	made("exchange-a", 50000);
	made("exchange-b", 70000);
	for (int n = 0; n < 60; n++) {
		int file = open(draw(2) ? "exchange-a" : "exchange-b", O_RDWR);
		check(file >= 0, "open");
		put(file, 30, draw(49000));
		check(syscall(SYS_renameat2, AT_FDCWD, "exchange-a", AT_FDCWD, "exchange-b", 2) == 0, "exchange");
		put(file, 40, length_of(file));
		close(file);
		pause_some();
	}
}

/* Several processes that append to one file, with vectors. */
static void appenders(void)
{
	for (int child = 0; child < 3; child++) {
		if (fork() == 0) {
			state += (unsigned)child * 77;
			int file = open("appended", O_WRONLY | O_CREAT | O_APPEND, 0600);
			for (int n = 0; n < 150; n++) {
				char *bytes = noise(900);
				struct iovec parts[3] = { { bytes, 100 }, { bytes + 100, draw(400) }, { bytes + 500, 1 + draw(400) } };
				check(writev(file, parts, 3) > 0, "writev");
				pause_some();
			}
			_exit(0);
		}
	}
	for (int child = 0; child < 3; child++) {
		int status;
		check(wait(&status) > 0 && status == 0, "an appender");
	}
}

/* A file that is written anew and takes the place of the old one, which somebody still writes to. */
static void replaces(void)
{
	int old = made("replaced", 30000);
	for (int n = 0; n < 50; n++) {
		int new = open("replaced.new", O_RDWR | O_CREAT | O_TRUNC, 0600);
		check(new >= 0, "open");
		add(new, 1 + draw(60000));
		check(rename("replaced.new", "replaced") == 0, "rename");
		put(old, 10, 0);
		put(new, 10, draw(1000));
		close(old);
		old = new;
		pause_some();
	}
}

static void folders(void)
{
	for (int n = 0; n < 40; n++) {
		char name[64], inner[96];
		snprintf(name, sizeof name, "folder-%d", n % 5);
		mkdir(name, 0700);
		snprintf(inner, sizeof inner, "%s/file-%d", name, n % 7);
		int file = open(inner, O_RDWR | O_CREAT, 0600);
		if (file >= 0) {
			put(file, 10 + draw(5000), draw(3000));
			close(file);
		}
		if (draw(3) == 0)
			rename(name, "folder-moved");
		if (draw(3) == 0)
			rename("folder-moved", name);
		if (draw(5) == 0)
			unlink(inner);
		pause_some();
	}
}

/* ---- what raises no event, or not under the name that is replicated ---- */

static void mapped(int flags, const char *name)
{
	int file = made(name, MIB);
	char *map = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	check(map != MAP_FAILED, "mmap");
	for (int n = 0; n < 100; n++) {
		memcpy(map + draw(MIB - 200), noise(100), 100);
		if (flags && draw(5) == 0)
			check(msync(map, MIB, flags) == 0, "msync");
		pause_some();
	}
	/* Once more, in a page that is still dirty. */
	memcpy(map + 5, noise(9), 9);
	check(munmap(map, MIB) == 0, "munmap");
}

static void mmap_synced(void)
{
	mapped(MS_SYNC, "mapped-synced");
}

static void mmap_unsynced(void)
{
	mapped(0, "mapped");
}

static void aio(void)
{
	int file = made("aio", MIB);
	aio_context_t context = 0;
	check(syscall(SYS_io_setup, 8, &context) == 0, "io_setup");
	for (int n = 0; n < 60; n++) {
		struct iocb block = { .aio_fildes = (unsigned)file, .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_nbytes = 3000,
			.aio_buf = (unsigned long)noise(3000), .aio_offset = draw(MIB) };
		struct iocb *blocks[1] = { &block };
		struct io_event event;
		check(syscall(SYS_io_submit, context, 1, blocks) == 1, "io_submit");
		check(syscall(SYS_io_getevents, context, 1, 1, &event, NULL) == 1 && event.res == 3000, "io_getevents");
		pause_some();
	}
}

/* Under another name outside. */
static void linked(void)
{
	char outside[64];
	made("linked", 100000);
	snprintf(outside, sizeof outside, "../outside-%d", getpid());
	check(link("linked", outside) == 0, "link");
	int file = open(outside, O_RDWR);
	check(file >= 0 && unlink(outside) == 0, "open");
	for (int n = 0; n < 40; n++) {
		put(file, 50, draw(99000));
		if (draw(3) == 0)
			put(file, 70, length_of(file));
		pause_some();
	}
}

/* Under another name inside. */
static void twins(void)
{
	made("twin-a", 100000);
	check(link("twin-a", "twin-b") == 0 || errno == EEXIST, "link");
	int file = open("twin-b", O_RDWR);
	for (int n = 0; n < 40; n++) {
		put(file, 50, draw(99000));
		if (draw(3) == 0)
			put(file, 70, length_of(file));
		pause_some();
	}
}

/* A file without a name, that gets one and is written to on. */
static void unnamed(void)
{
	int file = open(".", O_RDWR | O_TMPFILE, 0600);
	check(file >= 0, "O_TMPFILE");
	add(file, 50000);
	char itself[64];
	snprintf(itself, sizeof itself, "/proc/self/fd/%d", file);
	unlink("unnamed");
	check(linkat(AT_FDCWD, itself, AT_FDCWD, "unnamed", AT_SYMLINK_FOLLOW) == 0, "linkat");
	for (int n = 0; n < 40; n++) {
		put(file, 50, draw(49000));
		if (draw(3) == 0)
			put(file, 70, length_of(file));
		pause_some();
	}
}

static const char *any_name(char *name)
{
	static const char *folders[] = { "", "storm/", "storm/d/", "storm/d/e/" };
	sprintf(name, "%s%c", folders[1 + draw(3)], "abcde"[draw(5)]);
	return name;
}

/* Whatever may be done to a name, at random, by several at once: much of it fails. Nothing that is only seen when all files are looked at in turn. */
static void storm(void)
{
	static const mode_t modes[] = { 0400, 0600, 0640, 0644, 0755 };
	char one[64], other[64];
	mkdir("storm", 0755);
	for (int times = 0; times < 250; times++) {
		any_name(one);
		any_name(other);
		struct stat stat;
		int is_file = lstat(one, &stat) == 0 && S_ISREG(stat.st_mode);
		int file = -1;
		switch (draw(20)) {
		case 0: case 1: case 2: case 3:
			file = open(one, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0644);
			if (file >= 0 && write(file, noise(1 + draw(30000)), 1 + draw(30000)) < 0)
				break;
			break;
		case 4: case 5: case 6:
			file = is_file ? open(one, O_WRONLY | O_NOFOLLOW) : -1;
			if (file >= 0 && pwrite(file, noise(5000), 1 + draw(5000), draw(40000)) < 0)
				break;
			break;
		case 7:
			file = is_file ? open(one, O_WRONLY | O_NOFOLLOW) : -1;
			if (file >= 0 && ftruncate(file, draw(3) ? draw(60000) : 0) != 0)
				break;
			break;
		case 8:
			file = is_file ? open(one, O_WRONLY | O_NOFOLLOW) : -1;
			if (file >= 0)
				fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, draw(30000), 1 + draw(30000));
			break;
		case 9:
			file = is_file ? open(one, O_WRONLY | O_NOFOLLOW) : -1;
			if (file >= 0)
				fallocate(file, draw(2) ? FALLOC_FL_COLLAPSE_RANGE : FALLOC_FL_INSERT_RANGE, PAGE, PAGE);
			break;
		case 10: case 11:
			rename(one, other);
			break;
		case 12:
			syscall(SYS_renameat2, AT_FDCWD, one, AT_FDCWD, other, 2 /* RENAME_EXCHANGE */);
			break;
		case 13:
			/* Another name for the file, which is its only one a moment after that. */
			if (is_file && link(one, other) == 0)
				unlink(one);
			break;
		case 14:
			unlink(one);
			break;
		case 15:
			mkdir(one, 0700 | modes[draw(5)]);
			break;
		case 16:
			mkdir(draw(2) ? "storm/d" : "storm/d/e", 0755);
			rmdir(one);
			break;
		case 17:
			if (symlink(other, one) != 0)
				break;
			break;
		case 18:
			if (is_file && chmod(one, modes[draw(5)]) != 0)
				break;
			break;
		case 19:
			rename("storm/d/e", draw(2) ? "storm/moved" : "storm/d/b");
			rename("storm/moved", "storm/d/e");
			break;
		}
		if (file >= 0)
			close(file);
		pause_some();
	}
}

static const struct {
	const char *name;
	void (*run)(void);
} WRITERS[] = {
	{ "pages", pages }, { "header", header }, { "ring", ring }, { "preallocated", preallocated }, { "holes", holes },
	{ "ranges", ranges }, { "truncates", truncates }, { "times", times }, { "copies", copies },
	{ "exchanges", exchanges }, { "appenders", appenders }, { "replaces", replaces }, { "folders", folders },
	{ "mmap-synced", mmap_synced }, { "mmap-unsynced", mmap_unsynced }, { "aio", aio }, { "linked", linked },
	{ "twins", twins }, { "unnamed", unnamed }, { "storm", storm },
};

int main(int argc, char **argv)
{
	if (argc != 4 || chdir(argv[2]) != 0)
		return 2;
	state = strtoull(argv[3], NULL, 10);
	for (size_t at = 0; at < sizeof WRITERS / sizeof *WRITERS; at++) {
		if (strcmp(argv[1], WRITERS[at].name) == 0) {
			WRITERS[at].run();
			return 0;
		}
	}
	return 2;
}
