#include "sm90/decode/plan.hpp"

#include <algorithm>
#include <bit>
#include <sstream>

#include "sm90/device.hpp"
#include "sm90/tensors.hpp"

namespace foveal::sm90 {
namespace {

// As many as the GPU can hold, but a power of two where that leaves no more than every sixteenth idle: equal shares of
// equal sequences are then nodes of their trees.
Teams teams_of(int32_t ctas, int32_t heads) {
    const auto most = static_cast<uint32_t>(std::max(1, std::min(ctas, kDecodeCounts) / heads)),
               power = std::bit_floor(most);
    const uint32_t count = power * 16 >= most * 15 ? power : most;
    return {count, std::has_single_bit(count) ? std::countr_zero(count) : -1};
}

NodeSets node_sets_of(const DecodeSchedule& schedule) {
    return {schedule.heads, static_cast<int32_t>(schedule.teams.count),
            kDecodeTiles[schedule.choice.tile_index].tile.levels};
}

int64_t node_bytes_of(const DecodeSchedule& schedule) {
    const DecodeTile& tile = kDecodeTiles[schedule.choice.tile_index].tile;
    return node_sets_of(schedule).nodes() * tile.node_floats() * 4;
}

// The largest box of which a page is a whole number.
int32_t box_rows_of(const ForwardProblem& p) {
    if (p.keys != KeyForm::paged) return kBlockKeys;
    for (const int32_t rows : {64, 32, 16, 8})
        if (p.page_size % rows == 0) return rows;
    return 0;
}

DecodeRows rows_of(const Strides& strides, int64_t columns) {
    return {nullptr, strides.batch, strides.row, strides.head, static_cast<int32_t>(columns)};
}

DecodeDescale descale_of(const Descale& d) { return {nullptr, d.of_rows, d.stride.batch, d.stride.row, d.stride.head}; }

bool has_row_descales(const ForwardProblem& p) { return p.k_descale.of_rows || p.v_descale.of_rows; }

const char* name_of(DecodeVariant variant) { return variant == DecodeVariant::plain ? "plain" : "with score options"; }

}  // namespace

DecodeSchedule decode_schedule_of(const ForwardProblem& p, const DecodeChoice& choice,
                                  const cuda::DeviceTraits& traits) {
    DecodeSchedule schedule;
    schedule.choice = choice;
    schedule.box_rows = box_rows_of(p);
    schedule.heads = static_cast<int32_t>(p.heads_k) * choice.column_parts;
    if (p.total_rows_q() == 0 || p.batch == 0) return schedule;
    schedule.teams = teams_of(traits.sms * kDecodeTiles[choice.tile_index].tile.ctas, schedule.heads);
    schedule.split_grid = static_cast<int32_t>(schedule.teams.count) * schedule.heads;
    schedule.whole_grid = static_cast<int32_t>(p.batch) * schedule.heads;
    schedule.node_bytes = node_bytes_of(schedule);
    return schedule;
}

DecodeParams decode_params_of(const ForwardProblem& p, const DecodeSchedule& schedule) {
    DecodeParams params{};
    params.batch = static_cast<int32_t>(p.batch);
    params.heads_per_kv = static_cast<int32_t>(p.heads_per_kv());
    params.column_parts = schedule.choice.column_parts;
    params.heads = schedule.heads;
    params.least_rows = schedule.choice.least_rows;
    params.most_rows = schedule.choice.most_rows;
    params.by_heads = Divisor(params.heads);
    params.by_column_parts = Divisor(params.column_parts);
    params.by_heads_per_kv = Divisor(params.heads_per_kv);
    params.lengths_q = p.lengths_q({});
    params.lengths_k = p.lengths_k({});
    params.query_offset_stride = p.query_offset_stride;
    params.window = p.window();

    params.table = p.page_table({});
    if (p.keys == KeyForm::paged) {
        params.by_page_size = Divisor(p.page_size);
        params.block_pages = kBlockKeys / p.page_size;
        params.block_rows = kBlockKeys % p.page_size;
    }
    params.absent_page = static_cast<int32_t>(p.keys == KeyForm::paged ? p.pages : p.batch);
    params.box_rows = schedule.box_rows;
    params.k = rows_of(p.k, p.head_dim);
    params.v = rows_of(p.v, p.head_dim_v);
    params.k_descale = descale_of(p.k_descale);
    params.v_descale = descale_of(p.v_descale);
    params.has_row_descales = has_row_descales(p);

    params.q_batch_stride = p.q.batch;
    params.q_row_stride = p.q.row;
    params.q_head_stride = p.q.head;
    params.out_batch_stride = p.out.batch;
    params.out_row_stride = p.out.row;
    params.out_head_stride = p.out.head;
    params.lse_batch_stride = p.lse.batch;
    params.lse_head_stride = p.lse.head;

    params.scale_log2 = static_cast<float>(static_cast<double>(p.scale) * kLog2E);
    params.scores = score_options_of(p);
    params.tree_batch_stride = p.tree.batch;
    params.tree_row_stride = p.tree.row;
    params.tree_keys = static_cast<int32_t>(std::min<int64_t>(p.tree_words * 32, kMaxSequenceLength));
    params.teams = schedule.teams;
    params.sets = node_sets_of(schedule);
    return params;
}

PreparedDecode prepare_decode(const ForwardProblem& p, const DecodeChoice& choice, const cuda::DeviceTraits& traits) {
    const DecodeSchedule schedule = decode_schedule_of(p, choice, traits);
    if (schedule.whole_grid == 0) return {schedule, {}};
    return {schedule, decode_params_of(p, schedule)};
}

void check_workspace(const ForwardPointers& pointers, int64_t needed) {
    if (pointers.workspace != nullptr && static_cast<int64_t>(pointers.workspace_bytes) < needed)
        throw Error(FOVEAL_INVALID_ARGUMENT, "workspace_bytes is " + std::to_string(pointers.workspace_bytes) +
                                                 "; this call needs " + std::to_string(needed) +
                                                 ", or no workspace to be slow without");
}

void describe_decode(std::ostream& out, const ForwardProblem& p, const PreparedDecode& kernel, int32_t sms) {
    const DecodeSchedule& schedule = kernel.schedule;
    const DecodeTile tile = kernel.tile();
    out << "kernel     sm90 decode, " << foveal::name_of(p.dtype) << ", d and d_v up to " << tile.head_dim << ", "
        << name_of(schedule.choice.variant) << '\n'
        << "tile       " << tile.columns << " columns x " << kBlockKeys << " keys, " << tile.slots
        << " blocks of K or V in flight; limited by "
        << (tile.dequantises() ? "shared memory, as of 16 bits" : kernel.entry().limited_by) << '\n';
    if (most_parts_of(p, schedule.choice) > 1)
        out << "           more columns of a sequence are cut into up to " << most_parts_of(p, schedule.choice)
            << " parts, each of which reads K and V\n";
    if (schedule.choice.column_parts > 1)
        out << "           the columns of a KV head are cut into " << schedule.choice.column_parts
            << " parts, each of which reads K and V\n";
    out << "keys       ";
    if (schedule.box_rows > 0)
        out << "in boxes of " << schedule.box_rows << " rows, by the copy engine\n";
    else
        out << "row by row, by three warps\n";
    if (tile.dequantises())
        out << "           e4m3, dequantised in the registers of the warps that compute, by descales of "
            << (has_row_descales(p) ? "rows" : "heads") << '\n';
    out << "split      with the workspace: over " << schedule.split_grid << " CTAs of " << kDecodeThreads
        << " threads, " << schedule.teams.count << " for each of " << schedule.heads << " heads, on " << sms
        << " SMs\n           without: not at all, " << schedule.whole_grid << " CTAs\n"
        << "shared     " << shared_bytes(tile) << " bytes a CTA\n";
}

Sm90DecodePlan::Sm90DecodePlan(const ForwardProblem& problem, int32_t device, const cuda::DeviceTraits& traits)
    : ForwardPlan(problem, FOVEAL_BACKEND_SM90, device),
      traits_(traits),
      kernel_(prepare_decode(problem, decode_choice_of(problem), traits)) {}

std::string Sm90DecodePlan::describe() const {
    std::ostringstream out;
    out << foveal::describe(problem());
    describe_decode(out, problem(), kernel_, traits_.sms);
    out << "workspace  " << workspace_bytes() << " bytes\n"
        << "bound      the lengths are on the device\n";
    return out.str();
}

void Sm90DecodePlan::launch(const ForwardPointers& pointers, void* stream) const {
    check_pointers(pointers);
    check_workspace(pointers, workspace_bytes());
    if (kernel_.schedule.whole_grid > 0) launch_decode(problem(), kernel_, device(), pointers, stream);
}

std::unique_ptr<ForwardPlan> plan_decode(const ForwardProblem& problem, int32_t device) {
    check_decode(problem, decode_choice_of(problem));
    return std::make_unique<Sm90DecodePlan>(problem, device, traits_of(device));
}

}  // namespace foveal::sm90
