// Which instruction set the CPU loop runs with.

#pragma once

#include <string>  // for string
#include <vector>  // for vector

#include "range.h"   // for UpdateRange
#include "scores.h"  // for ScoreUnit

namespace proxadam {

struct Capability {
  const char* name;
  UpdateRange update_range;
  const ScoreUnit* scores;
};

// Those that were compiled in and that this processor has, the widest last.
std::vector<Capability> capabilities();

// The widest one, or the one that `name` asks for if it is not empty.
// Throws std::invalid_argument where this processor or this build does not have it.
Capability choose_capability(const std::string& name);

}  // namespace proxadam
