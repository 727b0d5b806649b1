# The known word nearest to `word`, or nothing where none is near: make says it after a misspelt target or variable.
#   printf '%s\n' KNOWN... | awk -v word=WORD -f nearest.awk
function least(a, b) { return a < b ? a : b }
function distance(one, other,    i, j, cost, row, above) { # edits between the two, a swap of neighbours is one
    for (j = 0; j <= length(other); j++) row[0, j] = j
    for (i = 1; i <= length(one); i++) {
        row[i, 0] = i
        for (j = 1; j <= length(other); j++) {
            cost = substr(one, i, 1) != substr(other, j, 1)
            row[i, j] = least(least(row[i - 1, j], row[i, j - 1]) + 1, row[i - 1, j - 1] + cost)
            if (i > 1 && j > 1 && substr(one, i, 1) == substr(other, j - 1, 1) && substr(one, i - 1, 1) == substr(other, j, 1))
                row[i, j] = least(row[i, j], row[i - 2, j - 2] + 1)
        }
    }
    return row[length(one), length(other)]
}
BEGIN { best = 1 + length(word) / 2 }
{
    found = distance(tolower(word), tolower($0))
    if (found < best) { best = found; nearest = $0 }
}
END { if (nearest != "") print nearest }
