// Where the tool's results go: what a path is stays what it is, and nothing is left half done.
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "tests/tool/run_fixture.hpp"

namespace foveal_testing {
namespace {

struct stat status_of(const std::string& path) {
    struct stat status {};
    EXPECT_EQ(lstat(path.c_str(), &status), 0) << path;
    return status;
}

mode_t permissions(const std::string& path) { return status_of(path).st_mode & 07777; }

std::string content_of(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// A folder with an input whose result takes some 10 kB.
class CpuOutput : public Cpu {
   protected:
    CpuOutput() {
        const std::vector<float> values(64 * 2 * 16, 0.5f);
        const StoredTensor tensor = stored("F32", {1, 64, 2, 16}, values);
        Safetensors input;
        input.tensors = {{"q", tensor}, {"k", tensor}, {"v", tensor}};
        write_file(file("in"), input);
        input_ = content_of(file("in"));
        EXPECT_STATUS(foveal(run_to(file("expected"))), 0);
        expected_ = content_of(file("expected"));
        EXPECT_GT(expected_.size(), 8192u);
        fs::remove(file("expected"));
    }

    std::string run_to(const std::string& output) const {
        return "run '" + file("in") + "' --backend cpu -o '" + output + "' ";
    }

    void put(const std::string& name, const std::string& content, mode_t mode = 0644) const {
        std::ofstream(file(name), std::ios::binary) << content;
        EXPECT_EQ(chmod(file(name).c_str(), mode), 0);
    }

    std::vector<std::string> names() const {
        std::vector<std::string> names;
        for (const auto& entry : fs::directory_iterator(file(""))) names.push_back(entry.path().filename().string());
        std::sort(names.begin(), names.end());
        return names;
    }

    std::string input_, expected_;
};

using Names = std::vector<std::string>;

TEST_F(CpuOutput, ANewFileHasTheModeOfTheUmask) {
    EXPECT_STATUS(shell("umask 027; \"$FOVEAL\" " + run_to(file("out"))), 0);
    EXPECT_EQ(permissions(file("out")), 0640u);
    EXPECT_EQ(content_of(file("out")), expected_);
    EXPECT_EQ(names(), (Names{"in", "out"}));
}

TEST_F(CpuOutput, AFileKeepsItsMode) {
    for (const mode_t mode : {0600u, 0640u, 0664u, 0604u}) {
        put("out", "old", mode);
        EXPECT_STATUS(foveal(run_to(file("out"))), 0);
        EXPECT_EQ(permissions(file("out")), mode);
        EXPECT_EQ(content_of(file("out")), expected_);
        EXPECT_STATUS(foveal("plan s5 h1 --backend cpu --json '" + file("out") + "'"), 0);
        EXPECT_EQ(permissions(file("out")), mode);
        EXPECT_EQ(json("out")["backend"], "cpu");
    }
}

TEST_F(CpuOutput, ALinkStaysALinkAndItsTargetIsWritten) {
    fs::create_directory(file("folder"));
    put("folder/target", "old", 0600);
    fs::create_symlink("folder/target", file("link"));
    fs::create_symlink("link", file("link_to_link"));
    fs::create_symlink(file("folder/new"), file("dangling"));
    for (const std::string name : {"link", "link_to_link", "dangling"}) {
        put("folder/target", "old", 0600);
        EXPECT_STATUS(foveal(run_to(file(name))), 0);
        EXPECT_TRUE(fs::is_symlink(file(name))) << name;
        EXPECT_EQ(content_of(file(name)), expected_) << name;
    }
    EXPECT_TRUE(fs::is_regular_file(file("folder/new")));
    EXPECT_EQ(permissions(file("folder/target")), 0600u);
    EXPECT_EQ(names(), (Names{"dangling", "folder", "in", "link", "link_to_link"}));
    fs::create_symlink("circle", file("circle"));
    const Result circle = foveal(run_to(file("circle")));
    EXPECT_STATUS(circle, 1);
    EXPECT_SAYS(circle, "cannot write '" + file("circle") + "'");
}

TEST_F(CpuOutput, AFileKeepsItsOtherNames) {
    for (const std::string& old : {std::string("old"), std::string(50000, 'x')}) {
        put("out", old, 0640);
        fs::create_hard_link(file("out"), file("other_name"));
        EXPECT_STATUS(foveal(run_to(file("out"))), 0);
        EXPECT_EQ(status_of(file("out")).st_ino, status_of(file("other_name")).st_ino);
        EXPECT_EQ(content_of(file("other_name")), expected_);
        EXPECT_EQ(permissions(file("out")), 0640u);
        fs::remove(file("other_name"));
    }
}

TEST_F(CpuOutput, AFifoIsWrittenTo) {
    ASSERT_EQ(mkfifo(file("fifo").c_str(), 0600), 0);
    EXPECT_STATUS(
        shell("cat '" + file("fifo") + "' > '" + file("got") + "' & \"$FOVEAL\" " + run_to(file("fifo")) + "&& wait"),
        0);
    EXPECT_EQ(content_of(file("got")), expected_);
    EXPECT_TRUE(S_ISFIFO(status_of(file("fifo")).st_mode));
    const Result nobody = foveal(run_to(file("fifo")));
    EXPECT_STATUS(nobody, 1);
    EXPECT_SAYS(nobody, "cannot write '" + file("fifo") + "': nobody reads this FIFO");
    EXPECT_FALSE(nobody.says("backend:")) << nobody.output;
    EXPECT_TRUE(S_ISFIFO(status_of(file("fifo")).st_mode));
}

// Nodes of the test's own: where the tool is wrong, and root runs it, a machine's own would be lost.
TEST_F(CpuOutput, ADeviceIsWrittenTo) {
    const auto make = [this](const std::string& name, unsigned minor) {
        return mknod(file(name).c_str(), S_IFCHR | 0666, makedev(1, minor)) == 0 && std::ofstream(file(name)).is_open();
    };
    if (!make("null", 3) || !make("full", 7)) GTEST_SKIP() << "SKIPPED: device nodes cannot be made and used here";
    fs::create_symlink("null", file("link"));
    for (const std::string name : {"null", "link"}) EXPECT_STATUS(foveal(run_to(file(name))), 0);
    const Result full = foveal(run_to(file("full")));
    EXPECT_STATUS(full, 1);
    EXPECT_SAYS(full, "cannot write '" + file("full") + "': No space left on device");
    EXPECT_STATUS(foveal("plan s5 h1 --backend cpu --json '" + file("full") + "'"), 1);
    for (const std::string name : {"null", "full"}) EXPECT_TRUE(S_ISCHR(status_of(file(name)).st_mode)) << name;
    EXPECT_TRUE(fs::is_symlink(file("link")));
}

TEST_F(CpuOutput, TheInputIsNotOverwrittenUnlessToldTo) {
    fs::create_hard_link(file("in"), file("other_name"));
    fs::create_symlink("in", file("link"));
    for (const std::string& name : {file("in"), file("./in"), file("other_name"), file("link")}) {
        const Result refused = foveal(run_to(name));
        EXPECT_STATUS(refused, 1);
        EXPECT_SAYS(refused, "is the input");
        EXPECT_SAYS(refused, "--overwrite-input");
        EXPECT_FALSE(refused.says("backend:")) << refused.output;
        EXPECT_EQ(content_of(file("in")), input_) << name;
    }
    const Result appended = shell("\"$FOVEAL\" " + run_to("-") + " 2>&1 >> '" + file("in") + "'");
    EXPECT_STATUS(appended, 1);
    EXPECT_EQ(content_of(file("in")), input_);
    EXPECT_STATUS(foveal(run_to(file("other_name")) + "--overwrite-input"), 0);
    EXPECT_EQ(content_of(file("in")), expected_);
    put("in", input_);
    fs::remove(file("other_name"));
    EXPECT_STATUS(foveal(run_to(file("in")) + "--overwrite-input"), 0);
    EXPECT_EQ(content_of(file("in")), expected_);
}

TEST_F(CpuOutput, APathThatCannotBeWrittenIsToldBeforeTheWork) {
    put("plain", "");
    const std::vector<std::pair<std::string, std::string>> paths = {
        {file("missing/out"), "No such file or directory"},
        {"", "the path is empty"},
        {file(""), "Is a directory"},
        {file("plain/out"), "Not a directory"},
        {file("new/"), "No such file or directory"},
        {file(std::string(300, 'x')), "File name too long"}};
    for (const auto& [path, reason] : paths) {
        const std::string words = "cannot write '" + path + "': " + reason;
        for (const std::string& command : {run_to(path), "check s5 h1 --backend cpu --json '" + path + "'",
                                           "bench s5 h1 --backend cpu --rounds 1 --json '" + path + "'",
                                           "plan s5 h1 --backend cpu --json '" + path + "'"}) {
            const Result result = foveal(command);
            EXPECT_STATUS(result, 1);
            EXPECT_SAYS(result, words);
            EXPECT_FALSE(result.says("backend:")) << command << "\n" << result.output;
        }
    }
    EXPECT_EQ(names(), (Names{"in", "plain"}));
}

// As another user than root, who may write anything.
TEST_F(CpuOutput, AFileOfAnotherUser) {
    const std::string as_nobody = geteuid() == 0 ? "setpriv --reuid=65534 --regid=65534 --clear-groups " : "";
    const auto run_as_nobody = [&](const std::string& arguments) {
        return shell(as_nobody + "\"$FOVEAL\" " + arguments);
    };
    ASSERT_EQ(chmod(file("").c_str(), 0777), 0);
    put("out", "old", 0444);
    if (run_as_nobody("case s5 h1").status != 0) GTEST_SKIP() << "SKIPPED: the tool cannot run as another user here";
    const Result protected_file = run_as_nobody(run_to(file("out")));
    EXPECT_STATUS(protected_file, 1);
    EXPECT_SAYS(protected_file, "cannot write '" + file("out") + "': Permission denied");
    EXPECT_EQ(content_of(file("out")), "old");
    if (geteuid() != 0) return;
    // Whose file it is cannot be said of a new one: it is written in place.
    ASSERT_EQ(chmod(file("out").c_str(), 0666), 0);
    const struct stat before = status_of(file("out"));
    EXPECT_STATUS(run_as_nobody(run_to(file("out"))), 0);
    EXPECT_EQ(content_of(file("out")), expected_);
    EXPECT_EQ(status_of(file("out")).st_uid, before.st_uid);
    EXPECT_EQ(status_of(file("out")).st_ino, before.st_ino);
    // In a folder that is closed to them only what is there can be written.
    ASSERT_EQ(chmod(file("").c_str(), 0755), 0);
    EXPECT_STATUS(run_as_nobody(run_to(file("out"))), 0);
    EXPECT_SAYS(run_as_nobody(run_to(file("new"))), "cannot write '" + file("new") + "': Permission denied");
}

// An access list as the kernel takes it: owner rw, the user 65534 r, group r, mask r, others nothing.
bool set_access_list(const std::string& path, const char* which) {
    const uint32_t version = 2;
    const struct {
        uint16_t tag, permissions;
        uint32_t id;
    } entries[] = {{1, 6, ~0u}, {2, 4, 65534}, {4, 4, ~0u}, {16, 4, ~0u}, {32, 0, ~0u}};
    char list[sizeof version + sizeof entries];
    std::memcpy(list, &version, sizeof version);
    std::memcpy(list + sizeof version, entries, sizeof entries);
    return setxattr(path.c_str(), which, list, sizeof list, 0) == 0;
}

TEST_F(CpuOutput, AFileKeepsItsAccessListAndGetsNone) {
    const auto has_list = [this] { return getxattr(file("out").c_str(), "system.posix_acl_access", nullptr, 0) > 0; };
    put("out", "old", 0640);
    const ino_t inode = status_of(file("out")).st_ino;
    EXPECT_STATUS(foveal(run_to(file("out"))), 0);
    EXPECT_NE(status_of(file("out")).st_ino, inode) << "a plain file is replaced";
    if (!set_access_list(file(""), "system.posix_acl_default")) GTEST_SKIP() << "SKIPPED: no access lists here";
    EXPECT_STATUS(foveal(run_to(file("out"))), 0);
    EXPECT_FALSE(has_list()) << "that of the folder would let another user read it";
    EXPECT_EQ(removexattr(file("").c_str(), "system.posix_acl_default"), 0);
    ASSERT_TRUE(set_access_list(file("out"), "system.posix_acl_access"));
    EXPECT_STATUS(foveal(run_to(file("out"))), 0);
    EXPECT_TRUE(has_list());
    EXPECT_EQ(content_of(file("out")), expected_);
}

// A name of 255 bytes is a name, also beside its partial file.
TEST_F(CpuOutput, TheLongestNameIsWritten) {
    const std::string name(255, 'x');
    for (int time = 0; time < 2; ++time) EXPECT_STATUS(foveal(run_to(file(name))), 0);
    EXPECT_EQ(content_of(file(name)), expected_);
}

// The preloaded write() sends the signal when half of a piece is there.
TEST_F(CpuOutput, AnInterruptLeavesNoPartialFile) {
    const std::vector<std::pair<std::string, int>> signals = {{"SIGTERM", 15}, {"SIGINT", 2}, {"SIGHUP", 1}};
    for (const auto& [name, number] : signals) {
        const std::string environment = preloaded("libfailing_writes.so") + " FOVEAL_TEST_WRITE=" + name;
        EXPECT_STATUS(foveal(run_to(file("out")), environment), -number);
        EXPECT_EQ(names(), Names{"in"}) << name;
        put("out", "old", 0640);
        EXPECT_STATUS(foveal(run_to(file("out")), environment), -number);
        EXPECT_STATUS(foveal("plan s5 h1 --backend cpu --json '" + file("out") + "'", environment), -number);
        EXPECT_EQ(names(), (Names{"in", "out"})) << name;
        EXPECT_EQ(content_of(file("out")), "old") << name;
        // A file of several names is written to its end, and then the signal takes its course.
        fs::create_hard_link(file("out"), file("two"));
        EXPECT_STATUS(foveal(run_to(file("out")), environment), -number);
        EXPECT_EQ(content_of(file("two")), expected_) << name;
        fs::remove(file("out")), fs::remove(file("two"));
    }
}

TEST_F(CpuOutput, AFullDiskLeavesNoPartialFile) {
    for (const auto& [name, words] :
         {std::pair<std::string, std::string>{"ENOSPC", "No space left on device"}, {"EIO", "Input/output error"}}) {
        const std::string environment = preloaded("libfailing_writes.so") + " FOVEAL_TEST_WRITE=" + name;
        const Result fresh = foveal(run_to(file("out")), environment);
        EXPECT_STATUS(fresh, 1);
        EXPECT_SAYS(fresh, "cannot write '" + file("out") + "': " + words);
        EXPECT_EQ(names(), Names{"in"});
        put("out", "old");
        EXPECT_STATUS(foveal(run_to(file("out")), environment), 1);
        EXPECT_STATUS(foveal("check s5 h1 --backend cpu --json '" + file("out") + "'", environment), 1);
        EXPECT_EQ(names(), (Names{"in", "out"}));
        EXPECT_EQ(content_of(file("out")), "old");
        fs::remove(file("out"));
    }
}

// The kernel's own limit, which would kill with SIGXFSZ: 8 blocks of 512 bytes.
TEST_F(CpuOutput, ALimitOfTheFileSizeLeavesNoPartialFile) {
    put("two", "old");
    for (const std::string limit : {"0", "8"}) {
        for (const std::string name : {"out", "two"}) {
            const Result result = shell("ulimit -f " + limit + "; \"$FOVEAL\" " + run_to(file(name)));
            EXPECT_STATUS(result, 1);
            EXPECT_SAYS(result, "cannot write '" + file(name) + "': File too large");
            EXPECT_EQ(names(), (Names{"in", "two"}));
            EXPECT_EQ(content_of(file("two")), "old");
        }
    }
    fs::create_hard_link(file("two"), file("zwei"));
    EXPECT_STATUS(shell("ulimit -f 8; \"$FOVEAL\" " + run_to(file("two"))), 1);
    EXPECT_EQ(content_of(file("zwei")), "old") << "of several names, and yet whole";
}

}  // namespace
}  // namespace foveal_testing
