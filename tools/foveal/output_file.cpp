#include "output_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

#include "held_signals.hpp"

namespace foveal_tool {
namespace {

namespace fs = std::filesystem;
using Bytes = OutputFile::Bytes;

constexpr int kMaxLinks = 40;                           // as many as Linux follows
constexpr size_t kBytesAtOnce = size_t{8} << 20;        // after each a signal is looked for
constexpr auto kReaderGrace = std::chrono::seconds(1);  // the reader of a FIFO may start beside this process

bool same_file(const struct stat& a, const struct stat& b) { return a.st_dev == b.st_dev && a.st_ino == b.st_ino; }

// Beyond the mode: who else may read and write.
bool has_access_list(const fs::path& path) { return getxattr(path.c_str(), "system.posix_acl_access", nullptr, 0) > 0; }

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

// The name under which the file lies, or would lie: links are followed one by one. "" where one of them is a link of
// /proc, such as /dev/stdout: it leads to a file that is open, whatever the name it shows.
fs::path without_links(fs::path path) {
    std::error_code error;
    for (int links = 0; links < kMaxLinks && fs::is_symlink(path, error); ++links) {
        const fs::path folder = folder_of(path);
        if (fs::canonical(folder, error).string().starts_with("/proc/")) return {};
        path = folder / fs::read_symlink(path, error);
    }
    return path;
}

// Returns 0 or an errno. With `stop`, a signal that arrives ends it: ECANCELED.
int put(int file, std::span<const Bytes> pieces, const HeldSignals* stop) {
    for (Bytes piece : pieces) {
        while (!piece.empty()) {
            if (stop != nullptr && stop->one_arrived()) return ECANCELED;
            const ssize_t written = ::write(file, piece.data(), std::min(piece.size(), kBytesAtOnce));
            if (written < 0 && errno == EINTR) continue;
            if (written < 0) return errno;
            if (written == 0) return EIO;
            piece = piece.subspan(static_cast<size_t>(written));
        }
    }
    return 0;
}

// A new file beside another one, removed at its end unless it has taken that one's place. While it lives signals have
// to be held.
class PartialFile {
   public:
    // error(): 0, or an errno.
    PartialFile(const fs::path& target, mode_t mode) : target_(target) {
        for (int n = 0; file_ < 0 && (n == 0 || errno == EEXIST); ++n) {
            name_ = folder_of(target) / fmt::format(".foveal-{}-{}.partial", getpid(), n);
            file_ = open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        }
        error_ = file_ < 0 ? errno : 0;
    }
    PartialFile(const PartialFile&) = delete;
    PartialFile& operator=(const PartialFile&) = delete;
    ~PartialFile() {
        if (file_ < 0) return;
        close(file_);
        unlink(name_.c_str());  // not there any more if it has taken its place
    }

    int error() const { return error_; }
    int file() const { return file_; }

    // May fail, as only root gives files away. The owner first: a change of it takes bits from the mode.
    bool looks_like(const struct stat& other) const {
        struct stat mine {};
        if (fstat(file_, &mine) != 0) return false;
        // A folder may give what is made in it an access list.
        if (has_access_list(name_)) return false;
        const bool owned = (mine.st_uid == other.st_uid && mine.st_gid == other.st_gid) ||
                           fchown(file_, other.st_uid, other.st_gid) == 0;
        return owned && fchmod(file_, other.st_mode & 07777) == 0;
    }

    // Returns 0 or an errno.
    int take_place() {
        // A network's file system may tell only now that there is no space.
        const int duplicate = dup(file_);
        if (duplicate < 0 || close(duplicate) != 0) return errno;
        return rename(name_.c_str(), target_.c_str()) == 0 ? 0 : errno;
    }

   private:
    fs::path target_, name_;
    int file_ = -1;
    int error_ = 0;
};

// Until it has its mode nobody else may look into it.
mode_t first_mode(bool replaces) { return replaces ? 0600 : 0666; }

}  // namespace

OutputFile::OutputFile(const std::string& path) : path_(path), way_(chosen_way()) {
    if (way_ == Way::kInPlace) file_ = opened_in_place();
}

OutputFile::~OutputFile() {
    if (file_ >= 0) close(file_);
}

OutputFile::Way OutputFile::chosen_way() {
    struct stat standard_output {};
    const bool has_standard_output =
        fstat(STDOUT_FILENO, &standard_output) == 0 && (fcntl(STDOUT_FILENO, F_GETFL) & O_ACCMODE) != O_RDONLY;
    if (path_ == "-") {
        if (!has_standard_output) fail(EBADF);
        exists_ = true;
        status_ = standard_output;
        return Way::kStandardOutput;
    }
    if (path_.empty()) fail("the path is empty");
    exists_ = stat(path_.c_str(), &status_) == 0;
    if (!exists_ && errno != ENOENT) fail(errno);
    if (exists_ && has_standard_output && same_file(status_, standard_output)) return Way::kStandardOutput;
    if (exists_ && S_ISDIR(status_.st_mode)) fail(EISDIR);
    target_ = without_links(path_);
    if (exists_) {
        const bool is_plain = S_ISREG(status_.st_mode) && status_.st_nlink == 1 && !target_.empty();
        return is_plain && replacement_is_the_same() ? Way::kReplace : Way::kInPlace;
    }
    const HeldSignals held;
    const PartialFile attempt(target_, first_mode(false));
    if (attempt.error() != 0) fail(attempt.error());
    return Way::kReplace;
}

// Would a new file in its place differ in nothing but the content? If not, the old one is written.
bool OutputFile::replacement_is_the_same() const {
    if (has_access_list(target_)) return false;
    const int old = open(target_.c_str(), O_WRONLY | O_CLOEXEC);
    if (old < 0) fail(errno);  // write-protected: so is its content
    close(old);
    const HeldSignals held;
    const PartialFile attempt(target_, first_mode(true));
    return attempt.error() == 0 && attempt.looks_like(status_);
}

int OutputFile::opened_in_place() const {
    // Without a reader the opening of a FIFO would wait, and perhaps for ever.
    const auto begin = std::chrono::steady_clock::now();
    int file = -1;
    do {
        file = open(path_.c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (file >= 0 || errno != ENXIO || !S_ISFIFO(status_.st_mode)) break;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        errno = ENXIO;
    } while (std::chrono::steady_clock::now() - begin < kReaderGrace);
    if (file < 0 && errno == ENXIO && S_ISFIFO(status_.st_mode)) fail("nobody reads this FIFO");
    if (file < 0) fail(errno);
    fcntl(file, F_SETFL, 0);  // from here on it may block
    return file;
}

bool OutputFile::is_same_file(const std::string& other) const {
    struct stat status {};
    return exists_ && stat(other.c_str(), &status) == 0 && same_file(status, status_);
}

void OutputFile::write(std::span<const Bytes> pieces) {
    if (way_ == Way::kReplace) return write_and_rename(pieces);
    if (way_ == Way::kInPlace) return write_in_place(pieces);
    if (const int error = put(STDOUT_FILENO, pieces, nullptr)) fail(error);
}

void OutputFile::write_in_place(std::span<const Bytes> pieces) {
    if (S_ISREG(status_.st_mode)) {
        const HeldSignals held;
        off_t bytes = 0;
        for (const Bytes piece : pieces) bytes += static_cast<off_t>(piece.size());
        // The space first, while the old content is still whole.
        if (const int error = bytes > status_.st_size ? posix_fallocate(file_, 0, bytes) : 0) {
            if (ftruncate(file_, status_.st_size) != 0) fail(errno);
            fail(error);
        }
        if (const int error = put(file_, pieces, nullptr)) fail(error);
        if (ftruncate(file_, bytes) != 0) fail(errno);
    } else if (const int error = put(file_, pieces, nullptr)) {
        fail(error);
    }
    if (close(std::exchange(file_, -1)) != 0) fail(errno);
}

void OutputFile::write_and_rename(std::span<const Bytes> pieces) const {
    const HeldSignals held;  // outlives what a signal has to remove
    PartialFile partial(target_, first_mode(exists_));
    if (partial.error() != 0) fail(partial.error());
    if (exists_ && !partial.looks_like(status_)) fail("its owner and mode cannot be kept");
    if (const int error = put(partial.file(), pieces, &held)) fail(error);
    if (const int error = partial.take_place()) fail(error);
}

void OutputFile::fail(const std::string& reason) const {
    throw OutputError(fmt::format("cannot write {}: {}", path_ == "-" ? "standard output" : "'" + path_ + "'", reason));
}

void OutputFile::fail(int error) const { fail(std::generic_category().message(error)); }

}  // namespace foveal_tool
