// Where results go: a path that the user names. It is written, never replaced by something else: a link stays a link
// and its target is written, a device or a FIFO gets the bytes, a file keeps its mode, owner, access list and other
// names.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>

namespace foveal_tool {

// The message names the path and the reason.
class OutputError : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

class OutputFile {
   public:
    using Bytes = std::span<const std::byte>;

    // "-": standard output. Throws OutputError where the path cannot be written, so that this is known before the work
    // whose results go there. Nothing has changed when it returns. A FIFO is given a second to get a reader.
    explicit OutputFile(const std::string& path);
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;
    ~OutputFile();

    // Is it what this process has as its standard output, by whatever name?
    bool is_standard_output() const { return way_ == Way::kStandardOutput; }
    // Is it the file that the path `other` leads to?
    bool is_same_file(const std::string& other) const;

    // Writes the pieces one after the other. Throws OutputError. A file that is new, or that has one name and belongs
    // to the user, has its old content or all of the new one: an error and a signal remove what was begun. (SIGKILL can
    // leave a hidden `.foveal-PID-N.partial` beside it.) Another file is written in place: signals wait, a lack of
    // space leaves it as it was, and only an error of the disk may leave a part.
    void write(std::span<const Bytes> pieces);

   private:
    enum class Way { kStandardOutput, kReplace, kInPlace };

    Way chosen_way();
    bool replacement_is_the_same() const;
    int opened_in_place() const;
    void write_in_place(std::span<const Bytes> pieces);
    void write_and_rename(std::span<const Bytes> pieces) const;
    [[noreturn]] void fail(const std::string& reason) const;
    [[noreturn]] void fail(int error) const;

    const std::string path_;
    bool exists_ = false;
    struct stat status_ {};         // of what exists
    std::filesystem::path target_;  // path_ without links; "": a link of /proc, which leads to an open file
    Way way_;
    int file_ = -1;  // kInPlace: open for writing
};

}  // namespace foveal_tool
